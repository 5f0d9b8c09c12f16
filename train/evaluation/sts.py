"""Semantic textual similarity: Spearman × 100 of two sentences' cosine and human rating (docs/methods.md §4)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from stores.console import progress_bar
from stores.errors import CusaError
from train.evaluation.metrics import paired_cosine, spearman
from train.evaluation.models import MeasuredModel, check_embeddings, require
from train.evaluation.result import DataSetError, Result
from train.evaluation.sts_files import PAIRS, SentencePairs, read_pairs

TASK: Final = "sts"
BATCH: Final = 64


def measure_sts(model: MeasuredModel, folder: Path) -> Result:
    """Return the correlation on each of the seven sets that lies in `folder`, and their average where all do.

    A set that is absent or broken becomes a message, and the others are measured.

    Raises:
        CusaError: the model embeds no texts, or gives what is not finite.
    """
    require(model, "text", TASK)
    result = Result(task=TASK, model=model.name)
    left_out: list[str] = []
    for name, published in PAIRS.items():
        try:
            pairs = read_pairs(name, folder)
            result.figures[name] = correlation(model, pairs, name)
        except DataSetError as error:
            result.messages.append(error.message)
            continue
        result.counts[name] = {"pairs": len(pairs.gold)}
        if pairs.unrated:
            left_out.append(f"{name}: {pairs.unrated:,} pairs without a gold score are left out.")
        if len(pairs.gold) != published:
            result.messages.append(
                f"{name}: {len(pairs.gold):,} pairs found, {published:,} published. The figure is not comparable."
            )
    if len(result.figures) == len(PAIRS):
        result.add_average()
    # After the average: such sets are as published, since SemEval had only a part of some years rated.
    result.messages.extend(left_out)
    return result


def correlation(model: MeasuredModel, pairs: SentencePairs, name: str) -> float:
    """Return Spearman × 100 between the cosine of each pair's embeddings and its gold score.

    Raises:
        DataSetError: there is nothing to rank: all scores, or all cosines, are equal.
        CusaError: the model gives what is not finite.
    """
    # A sentence often stands in several pairs: half of SICK's are repeated.
    rows = {text: row for row, text in enumerate(dict.fromkeys(pairs.first + pairs.second))}
    embeddings = embed_texts(model, list(rows), name)
    first, second = ([rows[text] for text in texts] for texts in (pairs.first, pairs.second))
    return correlate(embeddings[first], embeddings[second], np.array(pairs.gold), name)


def embed_texts(model: MeasuredModel, texts: list[str], name: str) -> NDArray[np.float32]:
    """Return the embeddings of texts, with a progress bar: (n, D).

    Raises:
        CusaError: they are not finite.
    """
    # By length, so that a model which pads a batch to its longest text has little to pad.
    order, parts = np.argsort([len(text) for text in texts], kind="stable"), []
    with progress_bar() as progress:
        task = progress.add_task(escape(f"{model.name}: {name}, texts"), total=len(texts), note="")
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            encoded = model.encode_texts([texts[place] for place in places])
            parts.append(check_embeddings(encoded, len(places), model.name))
            progress.advance(task, len(places))
    return np.concatenate(parts)[np.argsort(order)]


def correlate(first: NDArray[np.float32], second: NDArray[np.float32], gold: NDArray[np.float64], name: str) -> float:
    """Return Spearman × 100 between the cosines of rows of (n, D) `first` and `second` and (n,) gold scores.

    Raises:
        DataSetError: all scores, or all cosines, are equal.
    """
    try:
        return spearman(paired_cosine(first, second), gold)
    except CusaError as error:
        raise DataSetError(f"{name}: {error.message}") from None
