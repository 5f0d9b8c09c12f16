"""What tables call models: headings and legends have no room for the whole path of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return a name for each of the `models`, no two alike: paths without the folders that they all lie in."""
    paths = {model: Path(model).absolute() for model in models if Path(model).exists()}
    shared = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    names = {model: os.path.relpath(paths[model], shared) if model in paths else _pretrained(model) for model in models}
    return names if len(set(names.values())) == len(models) else {model: model for model in models}


def _pretrained(model: str) -> str:
    """Return the name of a model that lies in no folder of its own; of a weights file in it, the last part."""
    name, _, weights = model.partition("/")
    return f"{name}/{Path(weights).name}" if Path(weights).is_file() else model
