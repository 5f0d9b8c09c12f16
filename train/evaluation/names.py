"""Short names of models, for headings and legends that have no room for the whole path of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return a unique name for each of the `models`: paths without the folders that they have in common."""
    paths = {model: Path(model).absolute() for model in models if Path(model).exists()}
    shared = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    names = {model: os.path.relpath(paths[model], shared) if model in paths else _pretrained(model) for model in models}
    return names if len(set(names.values())) == len(models) else {model: model for model in models}


def _pretrained(model: str) -> str:
    """Return the name of a model that is no path itself, with the last part of a weights file's path."""
    name, _, weights = model.partition("/")
    return f"{name}/{Path(weights).name}" if Path(weights).is_file() else model
