"""The folder of an evaluation: figures.json, which marks it as ours, and beside it report.html."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Final

from stores.atomic import write_json
from stores.errors import ParameterError
from stores.layout import Layout
from stores.ownership import Kinds, holds, in_the_way, is_our_drawing, is_ours, is_signed
from train.evaluation.result import Evaluation

FORMAT: Final = 1
FIGURES: Final = "figures.json"
REPORT: Final = "report.html"
SCORED: Final = ("of", "finished")
SCORES: Final[Kinds] = {
    r"(scores|pairs)\.json": holds(*SCORED),
    r"(scores|pairs)\.partial": lambda path: holds(*SCORED)(path.with_suffix(".json")),
}
"""Files of an interrupted scoring in a folder, and how each shows that it is ours."""
DEPTHS: Final[Kinds] = {r"reranking\.md": is_signed, r"reranking\.png": is_our_drawing}
"""What a second stage gives by how many it reranks."""
_KINDS: Final[Kinds] = {
    re.escape(FIGURES): holds("format", "results"),
    re.escape(REPORT): is_signed,
    **SCORES,
    **DEPTHS,
}
_OF_A_TRAINING: Final = ("run.json", "epochs.csv", "last.safetensors")


def claim_folder(out: Path, store: Path) -> None:
    """Check, before hours of measuring, that the results can be written to `out`; create nothing yet.

    Raises:
        ParameterError: they cannot, or would lie in the store, or overwrite what is not an evaluation's.
    """
    if out.exists() and not out.is_dir():
        raise ParameterError("is a file", where="--out", path=out, expected=f"a folder for {FIGURES} and {REPORT}")
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ParameterError("cannot be written", where="--out", path=out, expected="a writable folder")
    if Layout(store).mark.exists() and out.resolve().is_relative_to(store.resolve()):
        raise ParameterError(f"lies in the store {store}", where="--out", path=out, advice="Name another folder.")
    if found := [name for name in _OF_A_TRAINING if (out / name).exists()]:
        raise ParameterError(f"holds a run of cusa-train ({found[0]})", where="--out", path=out, advice="Name another.")
    if others := in_the_way(out, _KINDS):
        advice = "Move it elsewhere, or name another folder."
        raise ParameterError("not as cusa-eval wrote it", where="--out", path=out, found=others[0], advice=advice)


def write_figures(out: Path, evaluation: Evaluation) -> None:
    """Write all figures at full precision, and remove the report of an earlier evaluation."""
    if is_ours(out, out / REPORT, _KINDS):
        (out / REPORT).unlink()
    record = {
        "format": FORMAT,
        "store": str(evaluation.store),
        "split": evaluation.split,
        "device": evaluation.device,
        "precision": evaluation.precision,
        "results": [asdict(result) for result in evaluation.results],
    }
    write_json(out / FIGURES, record)
