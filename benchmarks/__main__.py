"""Run every benchmark, print the table, and write it as JSON; where a bound is missed, end with exit code 1."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import (
    assignment,
    commands,
    extraction,
    frozen,
    gather,
    heads,
    index,
    ingest,
    large_batch,
    neighbours,
    pixels,
    ranking,
    reranking,
    serving,
    sgraf,
    step,
    texts,
    transport,
)
from benchmarks.measure import Result
from stores.atomic import write_json
from stores.console import Listing, output
from stores.ownership import holds, in_the_way
from stores.streams import unfailing_streams

REPORT = Path("artifacts/benchmarks.json")


def main() -> None:
    """Measure, print, write; a bound that is missed is named, and ends with exit code 1."""
    if in_the_way(REPORT.parent, {re.escape(REPORT.name): holds("machine", "results")}):
        sys.exit(f"{REPORT} is not as make bench wrote it, and is not overwritten. Move it elsewhere.")
    started = time.monotonic()
    measured: list[Result | None] = [*commands.benchmark(), *neighbours.benchmark()]
    measured += [
        gather.benchmark(1),
        gather.benchmark(100),
        pixels.benchmark(),
        ingest.benchmark(),
        extraction.benchmark(),
    ]
    measured += [texts.benchmark(repeated=True), texts.benchmark(repeated=False), *index.benchmark()]
    measured += [
        *(step.benchmark() or [None]),
        *(frozen.benchmark() or [None]),
        *large_batch.benchmark(),
        *ranking.benchmark(),
        *reranking.benchmark(),
    ]
    measured += [*heads.benchmark(), *sgraf.benchmark()]
    measured += [transport.benchmark(), assignment.benchmark()]
    measured += serving.benchmark()
    results = [result for result in measured if result is not None]
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    table = Listing(title=f"benchmarks · {machine['device']}, {machine['cpus']} cores", title_justify="left")
    for column in ("benchmark", "ours", "yardstick", "ratio", "bound", "kept"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for result in results:
        figures = (f"{value:,.3g} {result.unit}" for value in (result.ours, result.yardstick))
        table.add_row(result.name, *figures, f"{result.ratio:.3f}", result.bound, "yes" if result.kept else "NO")
    output().print(table)
    if len(results) < len(measured):
        print(f"Left out: what needs the pictures and captions in {extraction.PICTURES.parent}.")
    write_json(REPORT, {"machine": machine, "results": [asdict(result) for result in results]})
    print(f"Written to {REPORT} after {(time.monotonic() - started) / 60:.1f} min.")
    if missed := [result for result in results if not result.kept]:
        names = "\n".join(f"  {result.name}: {result.ratio:.3f}, bound {result.bound}" for result in missed)
        sys.exit(f"{len(missed)} of {len(results)} bounds are missed:\n{names}")


if __name__ == "__main__":
    with unfailing_streams():
        main()
