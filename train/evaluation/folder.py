"""The folder of an evaluation: figures.json, which marks it as ours, and beside it report.html."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from stores.atomic import write_json
from stores.errors import ParameterError
from stores.layout import Layout
from train.evaluation.result import Evaluation

FORMAT: Final = 1
FIGURES: Final = "figures.json"
REPORT: Final = "report.html"
_OF_A_TRAINING: Final = ("run.json", "epochs.csv", "last.safetensors")


def claim_folder(out: Path, store: Path) -> None:
    """See, before hours of measuring, that the results can be written to `out`; make nothing yet.

    Raises:
        ParameterError: they cannot, or would lie in the store, or overwrite what is not an evaluation's.
    """
    if out.exists() and not out.is_dir():
        raise ParameterError(
            f"--out {out} is a file; expected a folder, in which {FIGURES} and {REPORT} are written. Name a folder."
        )
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ParameterError(f"--out {out} cannot be written: expected a folder that may be written to.")
    if Layout(store).mark.exists() and out.resolve().is_relative_to(store.resolve()):
        raise ParameterError(f"--out {out} lies in the store {store}, which is never written to. Name another folder.")
    if found := [name for name in _OF_A_TRAINING if (out / name).exists()]:
        raise ParameterError(f"--out {out} holds a training of cusa-train ({found[0]}). Name another folder.")
    others = [name for name in (FIGURES, REPORT) if (out / name).exists()]
    if others and not _is_ours(out / FIGURES):
        raise ParameterError(
            f"--out {out} holds a {others[0]} that is not from cusa-eval, and is not overwritten. Name another folder."
        )


def write_figures(out: Path, evaluation: Evaluation) -> None:
    """Write all figures at full precision; a report of others, left by an earlier evaluation, is removed."""
    (out / REPORT).unlink(missing_ok=True)
    record = {
        "format": FORMAT,
        "store": str(evaluation.store),
        "split": evaluation.split,
        "device": evaluation.device,
        "precision": evaluation.precision,
        "results": [asdict(result) for result in evaluation.results],
    }
    write_json(out / FIGURES, record)


def _is_ours(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "results"} <= found.keys()
