"""Figures of several settings and seeds, as means, spreads and paired differences: CSV, Markdown and a plot."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
from scipy import stats

from stores import TrainingError
from stores.atomic import write_text
from stores.ownership import Kinds, in_the_way, is_our_drawing, is_signed, write_signed
from stores.parameters import Loss
from train.report.training_curves import save_drawing

matplotlib.use("Agg")
from matplotlib import pyplot

INFONCE: Final = "InfoNCE"
HEADINGS: Final = ("loss", "settings")
PARTS: Final = ("+ CSA", "+ USA", "+ CUSA")
COUNTERPARTS: Final = {
    "RSUM": ("COCO RSUM", "Flickr RSUM"),
    "true mAP@R i→t": ("ECCV average",),
    "true mAP@R t→i": ("ECCV average",),
    "image R@1": ("image average",),
    "caption Spearman": ("STS average",),
}
"""Which of the paper's figures one of ours is set beside: the kind is the same, the data are not."""

ABLATION: Final[dict[str, dict[str, float]]] = {
    parts: dict(zip(("COCO RSUM", "Flickr RSUM", "ECCV average", "image average", "STS average"), found, strict=True))
    for parts, found in {
        "InfoNCE": (422.6, 520.0, 52.6, 40.7, 69.4),
        "+ CSA": (427.7, 525.4, 54.5, 40.4, 66.5),
        "+ USA": (425.7, 523.4, 53.6, 47.8, 73.1),
        "+ CUSA": (429.7, 526.3, 54.5, 46.5, 73.2),
    }.items()
}
"""The CUSA paper's Table 5, of CLIP B/32: what each part of the soft labels brings."""

PAPERS_MARK: Final[dict[str, Any]] = {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": ""}


class Outcome(NamedTuple):
    """What one training reached on the test split."""

    setting: tuple[str, str]
    """Whose settings (empty without soft labels), and which parts."""
    seed: int
    loss: Loss
    figures: dict[str, float]


class Spread(NamedTuple):
    """Mean and standard deviation (of the sample, n - 1) over seeds."""

    mean: float
    deviation: float
    count: int

    @property
    def is_sure(self) -> bool:
        """Whether Student's 95 % interval of the mean leaves out zero."""
        if self.count < 2:
            return False
        half = float(stats.t.ppf(0.975, self.count - 1)) * self.deviation / math.sqrt(self.count)
        return abs(self.mean) > half


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value; of one, the deviation is not a number."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.mean(values), deviation, len(values))


def differences(outcomes: Sequence[Outcome], setting: tuple[str, str], figure: str) -> list[float]:
    """Return by how much `setting` exceeds InfoNCE alone with the same seed, for each seed."""
    alone = {one.seed: one.figures[figure] for one in outcomes if one.setting[1] == INFONCE}
    return [one.figures[figure] - alone[one.seed] for one in outcomes if one.setting == setting]


def check_folder(folder: Path) -> None:
    """Check, before the trainings, that the comparison can be written to `folder`.

    Raises:
        TrainingError: there are files in its place that `write_comparison` did not write, or that were changed since.
    """
    if others := in_the_way(folder, _KINDS):
        raise TrainingError(
            f"{folder} holds what is not as this command wrote it: {', '.join(others)}. Move it elsewhere, or choose "
            f"another --out."
        )


def _is_table(path: Path) -> bool:
    return path.read_bytes().startswith(b"settings,parts,tau_p,alpha,beta,seed,")


_KINDS: Final[Kinds] = {r"ablation\.md": is_signed, r"ablation\.csv": _is_table, r"ablation\.png": is_our_drawing}


def write_comparison(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write ablation.csv, ablation.png and ablation.md to `folder`; return the last one's path."""
    _write_csv(outcomes, folder / "ablation.csv")
    _draw(outcomes, folder / "ablation.png")
    tables = folder / "ablation.md"
    write_signed(tables, f"{_means(outcomes)}\n\n{_paired(outcomes)}\n")
    return tables


def _write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    text = io.StringIO()
    figures = _names(outcomes)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["settings", "parts", "tau_p", "alpha", "beta", "seed", *figures])
    for setting, seed, loss, found in outcomes:
        weights = (loss.teacher_temperature, loss.alpha, loss.beta)
        writer.writerow([*setting, *(f"{v:g}" for v in weights), seed, *(f"{found[name]:.3f}" for name in figures)])
    write_text(path, text.getvalue())


def _means(outcomes: Sequence[Outcome]) -> str:
    figures = _names(outcomes)
    rows = []
    for setting, loss in _settings(outcomes).items():
        values = ([one.figures[name] for one in outcomes if one.setting == setting] for name in figures)
        rows.append([*_words(setting, loss), *(_written(spread(found), "") for found in values)])
    seeds = len({one.seed for one in outcomes})
    table = markdown_table([*HEADINGS, *figures], rows, texts=2)
    return f"Mean ± standard deviation over {seeds} seeds, on the test split:\n\n{table}"


def _paired(outcomes: Sequence[Outcome]) -> str:
    figures = _names(outcomes)
    rows = []
    for setting, loss in _settings(outcomes).items():
        if setting[1] != INFONCE:
            found = (spread(differences(outcomes, setting, name)) for name in figures)
            rows.append([*_words(setting, loss), *(_written(one, "+") for one in found)])
    rows += [[parts, "CUSA paper", *(_reported(name, parts) for name in figures)] for parts in PARTS]
    return (
        "Difference from InfoNCE alone with the same seed, mean ± standard deviation; bold where the 95 % interval of "
        "the mean (Student's t) leaves out zero. The paper's differences are of CLIP B/32: RSUM on COCO / Flickr30K, "
        "and averages (avg) of ECCV Caption's figures both ways, of four image sets and of seven STS sets.\n\n"
        + markdown_table([*HEADINGS, *figures], rows, texts=2)
    )


def _words(setting: tuple[str, str], loss: Loss) -> tuple[str, str]:
    """Return which parts of the loss a setting has, and whose settings with their values."""
    whose, parts = setting
    weights = [f"τ_P {loss.teacher_temperature:g}"] if whose else []
    weights += [f"α {loss.alpha:g}"] * bool(loss.alpha) + [f"β {loss.beta:g}"] * bool(loss.beta)
    return parts, ": ".join(filter(None, (whose, ", ".join(weights))))


def _written(found: Spread, sign: str) -> str:
    text = f"{found.mean:{sign}.1f} ± {found.deviation:.1f}" if found.count > 1 else f"{found.mean:{sign}.1f}"
    return f"**{text}**" if sign and found.is_sure else text


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return a table in Markdown, of whose columns the first `texts` are no figures."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "\n".join([line(headings), line(rule), *map(line, rows)])


def _reported(figure: str, parts: str) -> str:
    theirs = " / ".join(f"{value:+.1f}" for value in _of_the_paper(figure, parts))
    return theirs if figure == "RSUM" else f"{theirs} (avg)"


def _of_the_paper(figure: str, parts: str) -> list[float]:
    return [ABLATION[parts][name] - ABLATION[INFONCE][name] for name in COUNTERPARTS[figure]]


def _names(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the figures that every training has."""
    return [name for name in outcomes[0].figures if all(name in one.figures for one in outcomes)]


def _settings(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Loss]:
    return {one.setting: one.loss for one in outcomes}


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw every seed's difference from InfoNCE alone, their mean, and the paper's difference."""
    figures = _names(outcomes)
    shown = [setting for setting in _settings(outcomes) if setting[1] != INFONCE]
    figure, axes = pyplot.subplots(
        1, len(figures), figsize=(3.1 * len(figures), 3.6), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes.flat, figures, strict=True):
        axis.axhline(0, color="black", linewidth=0.8)
        for place, (whose, parts) in enumerate(shown):
            values, colour = differences(outcomes, (whose, parts), name), "C0" if whose == "paper" else "C1"
            axis.plot([place] * len(values), values, "o", color=colour, alpha=0.5, markersize=4)
            axis.plot([place - 0.3, place + 0.3], [statistics.mean(values)] * 2, color=colour, linewidth=2)
            if whose == "paper":
                found = _of_the_paper(name, parts)
                axis.plot([place] * len(found), found, **PAPERS_MARK, markersize=5)
        axis.set_xticks(range(len(shown)), [f"{parts} ({whose})" for whose, parts in shown], rotation=75)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("difference from InfoNCE alone")
    marks = [
        pyplot.Line2D([], [], color="C0", marker="o", label="the paper's settings, by seed and their mean"),
        pyplot.Line2D([], [], color="C1", marker="o", label="ours"),
        pyplot.Line2D([], [], **PAPERS_MARK, label="the paper's figures, its data"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9)
    save_drawing(figure, path)
