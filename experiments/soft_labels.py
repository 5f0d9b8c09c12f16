"""How the soft labels' temperature and top-k change what is learned at small and large batches (docs/soft-labels.md).

`python -m experiments.soft_labels` trains the embedded student on scenes for every combination, measures mAP@R against
the true relevance of the test split, and writes the table and the plot. It takes about half an hour on 2 cores; a
stopped run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import matplotlib

from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, TrainParameters
from stores.atomic import write_text
from stores.parameters import Loss, Train
from train.report.training_curves import save_drawing

matplotlib.use("Agg")
from matplotlib import pyplot

WORK: Final = Path("artifacts/soft_labels")
TABLE, PLOT = Path("docs/soft-labels.csv"), Path("docs/soft-labels.png")
EPOCHS: Final = {128: 4, 1024: 8}
"""By batch size; a larger batch takes fewer steps an epoch."""
TEMPERATURES: Final = (1.0, 0.1, 0.05)
TOP_KS: Final = (None, 32, 8)


def main() -> None:
    """Train every combination, and write down what each reaches."""
    store = WORK / "store"
    extract(ExtractParameters(), store)
    trials = dict(_trials())
    found = train_all({name: parameters for name, (_, parameters) in trials.items()}, store, WORK)
    _write([(*place, *_reached(found[name])) for name, (place, _) in trials.items()])


def _trials() -> Iterator[tuple[str, tuple[tuple[object, ...], TrainParameters]]]:
    """Yield by name of each training the place of its row in the table, and its parameters."""
    for batch, epochs in EPOCHS.items():
        train = Train(epochs=epochs, batch_size=batch, compare=False)
        plain = TrainParameters(train=train, loss=Loss(alpha=0.0, beta=0.0))
        yield f"{batch}-infonce", ((batch, "InfoNCE", ""), plain)
        for tau, top_k in product(TEMPERATURES, TOP_KS):
            loss = Loss(alpha=1.0, beta=0.5, teacher_temperature=tau, soft_top_k=top_k)
            place = (batch, tau, top_k or "all")
            yield f"{batch}-{tau}-{place[-1]}", (place, replace(plain, loss=loss))


def _reached(figures: dict[str, Any]) -> tuple[float, float, float]:
    """Return mAP@R image→text, text→image, and RSUM of one training on the test split."""
    true = figures["true_relevance"]
    return true["image_to_text"]["mAP@R"], true["text_to_image"]["mAP@R"], figures["RSUM"]


def _write(rows: list[tuple[object, ...]]) -> None:
    lines = ["batch,tau_p,top_k,map_at_r_i2t,map_at_r_t2i,rsum"]
    lines += [",".join(f"{v:.2f}" if isinstance(v, float) and n > 2 else str(v) for n, v in enumerate(r)) for r in rows]
    write_text(TABLE, "\n".join(lines) + "\n")
    figure, axes = pyplot.subplots(1, len(EPOCHS), figsize=(11, 4), sharey=True, layout="constrained")
    for axis, batch in zip(axes, EPOCHS, strict=True):
        for number, tau in enumerate(TEMPERATURES):
            here = [row for row in rows if row[:2] == (batch, tau)]
            axis.plot([str(r[2]) for r in here], [r[4] for r in here], "o-", color=f"C{number}", label=f"τ_P = {tau}")
        for row in rows:
            if row[:2] == (batch, "InfoNCE"):
                axis.axhline(row[4], color="black", linestyle="--", label="InfoNCE alone")
        axis.set(title=f"batch {batch:,}", xlabel="soft_top_k")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("text→image mAP@R, true relevance")
    axes[0].legend()
    save_drawing(figure, PLOT)


if __name__ == "__main__":
    main()
