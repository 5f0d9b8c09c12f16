"""environment.json: what each start of a training ran on, so that its figures can be understood and reproduced.

It records versions, hardware, the checkout's commit and the command; never the name of a machine or a person, nor any
environment variable.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from scmrepo.git import Git

from stores.atomic import write_json
from stores.ownership import json_object

PACKAGES: Final = (
    *("accelerate", "cusa", "dvc", "dvclive", "faiss-cpu", "faiss-gpu", "h5py", "numpy", "open-clip-torch", "pillow"),
    *("pyarrow", "rich", "safetensors", "sentence-transformers", "tensorboard", "timm", "torch", "torchvision"),
    *("transformers", "webdataset"),
)
CHECKOUT: Final = Path(__file__).resolve().parents[2]


def record_start(folder: Path, device: str, precision: str, processes: int) -> None:
    """Add this start of a training to the `starts` in `folder`/environment.json; one that cannot be read has none."""
    path = folder / "environment.json"
    starts = json_object(path).get("starts")
    start = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": commit(CHECKOUT),
        "device": device,
        "precision": precision,
        "processes": processes,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    write_json(path, {"starts": [*(starts if isinstance(starts, list) else []), start]})


def command_line() -> str:
    """Return the command with its arguments as typed, however it was started."""
    return shlex.join(["cusa-train", *sys.argv[1:]])


def commit(checkout: Path) -> dict[str, Any] | None:
    """Return the commit of a checkout and whether tracked files differ from it; None where git cannot say."""
    try:
        with Git(str(checkout), search_parent_directories=False) as repository:
            return {"id": repository.get_rev(), "changed": repository.is_dirty()}
    except Exception:  # SCMError and its backends' own (no git, another owner's folder): a record stops no training
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's model; Linux tells it only here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
