"""Check that a device computes what the processor does, and time what it is for: `python -m benchmarks.gpu`.

Weights are random and pictures drawn, so that it needs nothing but the installed project; it takes less than nine
minutes on one GPU, writes one JSON, and ends with exit code 1 where a check fails. docs/benchmarks.md says which wheels
it wants. `--device cpu --small` tries the command itself anywhere.
"""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from PIL import Image

from benchmarks import device_checks, device_times
from stores.atomic import write_json
from stores.console import Listing, output
from stores.hardware import resolve_device
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
    where, sizes = resolve_device(device), SMALL if small else WHOLE
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        draw(pictures, sizes.pictures)
        checks = [check(where) for check in device_checks.CHECKS]
        times = [taken for measure in device_times.MEASURES for taken in measure(where, sizes, pictures)]
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else str(where)
    figures = Listing("what", "figure", "", title=f"{name}, torch {torch.__version__}", title_justify="left")
    for check in checks:
        figures.add_row(
            check.name, f"{check.difference:.1e}", f"at most {check.tolerance:.0e}: {'yes' if check.kept else 'NO'}"
        )
    for taken in times:
        figures.add_row(taken.name, f"{taken.value:,.4g}", taken.unit)
    output().print(figures)
    machine = {"device": name, "torch": torch.__version__, "small": small, "minutes": (time.monotonic() - started) / 60}
    listed = [{**asdict(check), "kept": check.kept} for check in checks]
    write_json(report, {"machine": machine, "checks": listed, "times": [asdict(taken) for taken in times]})
    print(f"Written to {report} after {machine['minutes']:.1f} min.")
    if missed := [check.name for check in checks if not check.kept]:
        raise SystemExit(f"{name} computes otherwise than the processor: {', '.join(missed)}.")


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
