"""Check that a device computes what the processor does, and time what it is for: `python -m benchmarks.gpu`.

Weights are random and pictures drawn, so that it needs nothing but the installed project; it takes less than nine
minutes on one GPU, writes one JSON after each figure, and ends with exit code 1 where a check or a measurement fails.
docs/benchmarks.md says which packages it wants. `--device cpu --small` tries the command itself anywhere.
"""

from __future__ import annotations

import io
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import faiss
import numpy as np
import torch
import torchvision
from PIL import Image

from benchmarks import device_checks, device_times
from benchmarks.record import Record
from stores.console import Listing, output
from stores.cores import usable_cores
from stores.hardware import use_device
from stores.streams import unfailing_streams


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is computed."""

    pictures: int
    texts: int
    batch: int
    """Of a CUSA step."""
    student: str
    pairs: int
    """Of the objective in tiles."""
    scored: tuple[int, int]
    """Images and captions that a network scores pair by pair."""


WHOLE: Final = Sizes(
    pictures=8192, texts=50_000, batch=1024, student="open-clip:ViT-B-32", pairs=32_768, scored=(1000, 5000)
)
SMALL: Final = Sizes(pictures=32, texts=200, batch=16, student="open-clip:small-clip", pairs=1024, scored=(20, 100))


@click.command()
@click.option("--device", default="cuda", show_default=True, help="As torch names it.")
@click.option("--small", is_flag=True, help="Little of everything, to see that it runs; its times mean nothing.")
@click.option("--report", type=click.Path(path_type=Path), default=Path("artifacts/gpu.json"), show_default=True)
def main(device: str, small: bool, report: Path) -> None:
    """Check a device against the processor, and time it."""
    where, sizes = use_device(device), SMALL if small else WHOLE
    machine = described(where)
    record = Record(report, {**machine, "small": small}, "checks", "times")
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        draw(pictures, sizes.pictures)
        for check in device_checks.CHECKS:
            record.keep("checks", check.__name__, lambda check=check: [check(where)])
        for measure in device_times.MEASURES:
            record.keep("times", measure.__name__, partial(measure, where, sizes, pictures))
    title = ", ".join(f"{name} {version}" for name, version in machine.items() if version is not None)
    figures = Listing("what", "figure", "", title=title, title_justify="left")
    for check in record["checks"]:
        figures.add_row(
            check.name, f"{check.difference:.1e}", f"at most {check.tolerance:.0e}: {'yes' if check.kept else 'NO'}"
        )
    for taken in record["times"]:
        figures.add_row(taken.name, f"{taken.value:,.4g}", taken.unit)
    output().print(figures)
    missed = ", ".join(check.name for check in record["checks"] if not check.kept)
    record.finish(f"{machine['device']} computes otherwise than the processor: {missed}." if missed else "")


def described(device: torch.device) -> dict[str, str | int | None]:
    """Return what figures depend on: the device, the driver, and what computes; None for what is not there."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "driver": driver_version(Path("/proc/driver/nvidia/version")),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "torchvision": torchvision.__version__,
        "faiss": faiss.__version__,
        "GPUs that faiss sees": faiss.get_num_gpus(),
        "cores": usable_cores(),
    }


def driver_version(path: Path) -> str | None:
    """Return the version that NVIDIA's kernel module tells in a file; None where there is none."""
    try:
        found = re.search(r"\s(\d+(?:\.\d+)+)\s", path.read_text())
    except OSError:
        return None
    return found[1] if found else None


def draw(folder: Path, count: int) -> None:
    """Draw JPEGs of 640 × 480 with slopes, edges and noise, about as large as photographs, 64 different ones."""
    folder.mkdir()
    random = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    drawn = []
    for _ in range(min(count, 64)):
        slopes = np.stack(
            [x * random.uniform(0.1, 0.4), y * random.uniform(0.1, 0.5), (x // 40 + y // 30) % 2 * 200], -1
        )
        noisy = (slopes + random.normal(0, 12, slopes.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=92)
        drawn.append(stream.getvalue())
    for number in range(count):
        # A comment makes every file another one: equal ones would be encoded once.
        data, comment = drawn[number % 64], b"\xff\xfe" + (10).to_bytes(2, "big") + number.to_bytes(8, "big")
        (folder / f"{number:06}.jpg").write_bytes(data[:2] + comment + data[2:])


if __name__ == "__main__":
    with unfailing_streams():
        main()
