"""A run's folder explains itself: README.md says what was trained and how far it is, epochs.csv has all figures.

Both are rewritten after each epoch and at the end.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stores.ownership import write_signed
from stores.parameters import Loss, TrainParameters
from train.evaluation.figure_tables import markdown_table
from train.fit.environment import command_line
from train.fit.epoch import Epoch, write_epochs
from train.losses.objective import described

SOFT: Final = "soft_labels"
ORIGINALS: Final = ("infonce", "hinge", "original")
"""What a training with the student's original loss alone may be called; beside the other it lies in a folder of this
name."""
FILES: Final = {
    "report.html": "figures, curves, embeddings, cases and suspected false negatives, to look at",
    "best.safetensors": "the model with the highest validation RSUM: student, heads, temperatures",
    "last.safetensors": "the latest state, to go on from: model, objective, optimiser, place in the epoch",
    "epoch-*.safetensors": "the model after every so many epochs (`train.keep_every`)",
    "student.safetensors": "the best model's student alone, without cusa's heads (see below)",
    "metrics.json": "the figures on the test split, by training",
    "epochs.csv": "every epoch's figures, one row per epoch; epochs count from 1",
    "clean.arrow": "how likely each training pair is right, by the training's own split",
    "run.json": "parameters, versions of the code, fingerprints of the data; a run goes on only where they agree",
    "environment.json": "what each start ran on: versions, hardware, commit, command",
    "plots/curves.png": "the curves, drawn",
    "dvclive/": "the curves by epoch, for DVC",
    "tensorboard/": "the curves by step and by epoch, for TensorBoard",
    **{
        f"{title}/": "the same training without soft labels, for comparison; it has a page of its own"
        for title in ORIGINALS
    },
}
"""The files of a run's folder, and what each is for."""


def title_of(loss: Loss) -> str:
    """Return what a training with this loss is called."""
    if loss.alpha or loss.beta:
        return SOFT
    return loss.original if loss.original in ORIGINALS else ORIGINALS[-1]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run's page says about a training besides its figures."""

    title: str
    parameters: TrainParameters
    """With the loss of this very training."""
    store: Path
    """As the user named it."""
    fingerprint: str
    """Of the store's data."""
    data: str
    """What an epoch is, in words: pairs, steps, what is left out."""
    device: str
    precision: str
    processes: int


def describe(folder: Path, facts: Facts, history: Sequence[Epoch], measured: Mapping[str, Any] | None = None) -> None:
    """Write `folder`/epochs.csv and, after it, the page `folder`/README.md.

    Args:
        folder: the training's.
        facts: what it is.
        history: the epochs that are finished; may be empty.
        measured: the figures on the test split, as metrics.json has them for this training, once there are any.
    """
    write_epochs(folder / "epochs.csv", history)
    sections = [
        f"# {facts.title}: a training of {facts.parameters.student.model}",
        "cusa-train writes this page after each epoch and at the end, unless it is changed: keep notes elsewhere.",
        f"## What it is\n\n{_what(facts)}",
        f"## How it stands\n\n{_standing(facts, history)}",
        *([f"## On the test split\n\n{_tested(facts, measured)}"] if measured else []),
        f"## What lies here\n\n{_files(folder)}",
        f"## Going on, and looking\n\n{_commands(folder, facts.processes)}",
    ]
    if (folder / "student.safetensors").exists():
        sections.append(f"## Loading the student\n\n{_loading(folder, facts.parameters.student.model)}")
    write_signed(folder / "README.md", "\n\n".join(sections) + "\n")


def _what(facts: Facts) -> str:
    parameters, train = facts.parameters, facts.parameters.train
    student = parameters.student.model
    if parameters.student.freeze:
        student += f", frozen: {' and '.join(parameters.student.freeze)} tower"
    rows = {
        "student": student,
        "teachers": f"{parameters.teachers.image} for images, {parameters.teachers.text} for texts",
        "store": f"{facts.store}, data fingerprint {facts.fingerprint[:12]}",
        "mixed in": ", ".join(f"{path} ({share:.0%} of the pairs)" for path, share in train.mix_in.items()),
        "loss": described(parameters.loss),
        "data": facts.data,
        "training": f"{train.epochs} epochs of AdamW, weight decay {train.weight_decay:g}; learning rate "
        f"{train.learning_rate:g}, falling to {train.final_learning_rate:g} by a cosine; seed {train.seed}",
        "machine": f"{facts.device}, {facts.precision}, {facts.processes} process{'es' * (facts.processes != 1)}",
    }
    return markdown_table(("", ""), [(name, text) for name, text in rows.items() if text], texts=2)


def _standing(facts: Facts, history: Sequence[Epoch]) -> str:
    if not history:
        return "No epoch is finished yet."
    best = max(history, key=lambda e: -math.inf if math.isnan(e.validation_rsum) else e.validation_rsum)
    heading = (
        f"Epoch {len(history)} of {facts.parameters.train.epochs} is finished. The best is epoch {best.epoch + 1}, "
        f"with RSUM {best.validation_rsum:.1f} on the split `{facts.parameters.eval.validation}`."
    )
    roles = {"first": history[0], "best": best, "last": history[-1]}
    rows = [
        (
            f"{e.epoch + 1} ({', '.join(role for role, of_role in roles.items() if of_role is e)})",
            *(f"{value:.4g}" for value in e.loss.values()),
            f"{e.validation_rsum:.1f}",
            f"{e.samples_per_second:,.0f}",
            f"{e.wait:.0%}",
        )
        for e in {e.epoch: e for e in roles.values()}.values()
    ]
    names = ("epoch", *history[0].loss, "validation RSUM", "pairs/s", "wait for input")
    return f"{heading}\n\n{markdown_table(names, rows)}"


def _tested(facts: Facts, measured: Mapping[str, Any]) -> str:
    if "RSUM" not in measured:
        return f"Retrieval could not be measured on `{facts.parameters.eval.test}`; the run said why."
    directions = {"image → text": measured["image_to_text"], "text → image": measured["text_to_image"]}
    names = list(measured["image_to_text"])
    rows = [(name, *(f"{found[key]:.1f}" for key in names)) for name, found in directions.items()]
    return (
        f"Measured once, on `{facts.parameters.eval.test}`, with the best epoch: **RSUM {measured['RSUM']:.1f}**.\n\n"
        f"{markdown_table(('', *names), rows)}"
    )


def _files(folder: Path) -> str:
    rows = [(f"`{name}`", purpose) for name, purpose in FILES.items() if any(folder.glob(name.rstrip("/")))]
    listed = markdown_table(("file", "what it is for"), rows, texts=2)
    if not (folder / "run.json").exists() and (folder.parent / "run.json").exists():
        listed += "\n\n`run.json`, `environment.json`, `metrics.json` and `plots/` lie one folder up."
    return listed


def _commands(folder: Path, processes: int) -> str:
    place, metrics = shlex.quote(str(folder)), shlex.quote(str(folder / "dvclive/plots/metrics"))
    launcher = f"torchrun --nproc-per-node {processes} --no-python -- " if processes > 1 else ""
    lines = [(launcher + command_line(), "the same command: goes on from the last checkpoint")]
    if (folder / "metrics.json").exists():
        lines.append((f"cusa-train --show --run {place}", "the table of results"))
    lines.append((f"dvc plots show {metrics}", "the curves, as a page in dvc_plots/"))
    if (folder / "tensorboard").exists():
        lines.append((f"tensorboard --logdir {place}", "the curves by step"))
    return "```\n" + "\n".join(f"{command}  # {what}" for command, what in lines) + "\n```"


def _loading(folder: Path, model: str) -> str:
    weights = json.dumps(str(folder / "student.safetensors"), ensure_ascii=False)
    family, _, name = model.partition(":")
    if family != "open-clip":
        lines = [
            "from safetensors.torch import load_file",
            "from stores.parameters import Student",
            "from models.student import load_student",
            "",
            f'student = load_student(Student(model="{model}"))',
            f"student.load_state_dict(load_file({weights}))",
        ]
    else:
        name = name.partition("/")[0]
        lines = ["import open_clip", f'model = open_clip.create_model("{name}", pretrained={weights})']
        if name == "small-clip":
            lines[1:1] = [
                "from models.open_clip_student import SMALL_CLIP",
                "",
                "open_clip.add_model_config(SMALL_CLIP)",
            ]
    return "```python\n" + "\n".join(lines) + "\n```"
