"""Run every benchmark, print the table, and write it as JSON; where a bound is missed, end with exit code 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

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
from benchmarks.record import Record
from stores.console import Listing, output
from stores.streams import unfailing_streams

REPORT = Path("artifacts/benchmarks.json")


BENCHMARKS: Final[tuple[tuple[str, Callable[[], Result | list[Result] | None]], ...]] = (
    ("commands", commands.benchmark),
    ("a busy neighbour", neighbours.benchmark),
    ("gather, 1 part", partial(gather.benchmark, 1)),
    ("gather, 100 parts", partial(gather.benchmark, 100)),
    ("pixels", pixels.benchmark),
    ("sharding", ingest.benchmark),
    ("extraction", extraction.benchmark),
    ("texts with repeats", partial(texts.benchmark, repeated=True)),
    ("texts without repeats", partial(texts.benchmark, repeated=False)),
    ("index", index.benchmark),
    ("step", step.benchmark),
    ("frozen towers", frozen.benchmark),
    ("large batch", large_batch.benchmark),
    ("ranking", ranking.benchmark),
    ("reranking", reranking.benchmark),
    ("heads", heads.benchmark),
    ("SGR and SAF", sgraf.benchmark),
    ("transport", transport.benchmark),
    ("assignment", assignment.benchmark),
    ("serving", serving.benchmark),
)


def main() -> None:
    """Measure, print, write; a bound that is missed is named, and ends with exit code 1."""
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    record, absent = Record(REPORT, machine, "results"), []

    def results(name: str, benchmark: Callable[[], Result | list[Result] | None]) -> list[Result]:
        found = benchmark() or []
        if not found:
            absent.append(name)
        return found if isinstance(found, list) else [found]

    for name, benchmark in BENCHMARKS:
        record.keep("results", name, partial(results, name, benchmark))
    table = Listing(title=f"benchmarks · {machine['device']}, {machine['cpus']} cores", title_justify="left")
    for column in ("benchmark", "ours", "yardstick", "ratio", "bound", "kept"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for result in record["results"]:
        figures = (f"{value:,.3g} {result.unit}" for value in (result.ours, result.yardstick))
        table.add_row(result.name, *figures, f"{result.ratio:.3f}", result.bound, "yes" if result.kept else "NO")
    output().print(table)
    if absent:
        print(f"Left out: {', '.join(absent)}, which need what lies in {extraction.PICTURES.parent}.")
    missed = [result for result in record["results"] if not result.kept]
    names = "\n".join(f"  {result.name}: {result.ratio:.3f}, bound {result.bound}" for result in missed)
    record.finish(f"{len(missed)} of {len(record['results'])} bounds are missed:\n{names}" if missed else "")


if __name__ == "__main__":
    with unfailing_streams():
        main()
