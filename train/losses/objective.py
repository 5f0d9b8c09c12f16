"""The training objective: InfoNCE + α·CSA + β·USA (CUSA, arXiv 2403.05261, eq. 9).

It is the mean over some pairs, the rows, of their losses against all pairs of the batch, the columns. In one process
both are the whole batch; where processes share a batch, each has its own rows, and the mean over equal shares is the
whole batch's objective. Beyond `tiles.ELEMENTS` similarities a matrix it is computed block by block of rows.

Shapes: M rows, N columns, D the student's embedding size, Di and Dt the teachers'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.temperatures import Taus
from stores.parameters import Loss
from train.losses import tiles
from train.losses.functional import csa_loss, info_nce, mixed_targets, unit, usa_loss

Similarity = Callable[[Tensor, Tensor], Tensor]


class Compared(NamedTuple):
    """What the objective compares, of N pairs."""

    image: Tensor
    """(N, D), as the three next; they need not be normalised."""
    text: Tensor
    uni_image: Tensor
    uni_text: Tensor
    teacher_image: Tensor | None
    """(N, Di) features; None where the loss has no soft labels."""
    teacher_text: Tensor | None
    """(N, Dt) features, likewise."""
    groups: Tensor
    """(N,) int64; pairs of one group, those of one image, share their InfoNCE targets."""


def objective(
    rows: Compared, columns: Compared, taus: Taus, loss: Loss, similarity: Similarity | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and its parts before weighting, detached; parts of weight zero are not computed.

    Args:
        rows: the pairs whose losses are averaged, M of them.
        columns: the pairs that they are compared with, the rows among them; the same object where they are the rows.
        taus: temperatures.
        loss: weights and settings.
        similarity: a student's own, (M, ·) images and (N, ·) texts to (M, N). None: the cosine.
    """
    # A student's own similarity runs outside this block: under the autocast of the caller, if there is any.
    cross = None if similarity is None else _own_similarities(similarity, rows, columns)
    with torch.autocast(rows.image.device.type, enabled=False):
        of_columns = _unit(columns)
        of_rows = of_columns if rows is columns else _unit(rows)
        height = max(1, tiles.ELEMENTS // len(columns.groups))
        if cross is None and height < len(rows.groups):
            values = tiles.tiled_mean(_block(loss), of_rows, of_columns, taus, height)
        else:
            values = _values(of_rows, of_columns, taus, loss, cross)
    names = ["InfoNCE", *(["CSA"] if loss.alpha else []), *(["USA"] if loss.beta else [])]
    return values[0], {name: part.detach() for name, part in zip(names, values[1:], strict=True)}


def _values(
    rows: Compared, columns: Compared, taus: Taus, loss: Loss, cross: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Return the loss and its parts, from normalised embeddings or the similarities `cross`."""
    images, texts = _cosines(rows, columns) if cross is None else cross
    parts = [info_nce(images, taus.contrast, (rows.groups, columns.groups), loss.reduction, texts)]
    total = parts[0]
    if loss.alpha or loss.beta:
        targets = _targets(rows, columns, loss)
    if loss.alpha:
        parts.append(csa_loss(images, *targets, taus.cross, texts))
        total = total + loss.alpha * parts[-1]
    if loss.beta:
        among = (rows.uni_image @ columns.uni_image.T, rows.uni_text @ columns.uni_text.T)
        parts.append(usa_loss(*among, *targets, taus.image, taus.text))
        total = total + loss.beta * parts[-1]
    return total, *parts


def _block(loss: Loss) -> tiles.Block:
    def block(rows: tiles.Inputs, columns: tiles.Inputs, taus: tiles.Inputs) -> tuple[Tensor, ...]:
        return _values(Compared(*rows), Compared(*columns), Taus(*taus), loss)  # type: ignore[arg-type] # as they came

    return block


def _cosines(rows: Compared, columns: Compared) -> tuple[Tensor, Tensor]:
    images = rows.image @ columns.text.T
    return images, images.T if rows is columns else rows.text @ columns.image.T


def _own_similarities(similarity: Similarity, rows: Compared, columns: Compared) -> tuple[Tensor, Tensor]:
    images = similarity(rows.image, columns.text)
    return images, images.T if rows is columns else similarity(columns.image, rows.text).T


def _targets(rows: Compared, columns: Compared, loss: Loss) -> tuple[Tensor, Tensor]:
    pairs = ((rows.teacher_image, columns.teacher_image), (rows.teacher_text, columns.teacher_text))
    images, texts = (_similarity_of_teacher(*pair) for pair in pairs)
    return mixed_targets(images, texts, loss.teacher_temperature, loss.mix, loss.soft_top_k)


def _similarity_of_teacher(rows: Tensor | None, columns: Tensor | None) -> Tensor:
    if rows is None or columns is None:
        raise ValueError("Soft labels (alpha or beta above zero) need both teachers' features, of rows and columns.")
    return rows @ columns.T


def _unit(pairs: Compared) -> Compared:
    *embeddings, groups = pairs
    return Compared(*(None if embedding is None else unit(embedding) for embedding in embeddings), groups)  # type: ignore[call-arg,arg-type]
