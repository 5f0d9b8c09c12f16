"""cusa-store neighbours: the rows nearest to a row of the store, or to a new text or image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline.inspection.teachers import cross_modal_slugs, default_slug, encode, load_stored
from stores import CusaError, Store, StoreError
from stores.columns import Column
from stores.console import Listing, cell
from stores.images import decode_rgb
from stores.modality import Level

_CAPTIONS_SHOWN = 2


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the neighbours of are wanted: a row, a text, an image, or the latter two; by which teacher, and where."""

    row: int | None = None
    text: str | None = None
    image: Path | None = None
    modality: str | None = None
    teacher: str | None = None
    split: str | None = None
    weights: str | None = None
    rerank: str | None = None
    """The second stage's student by name."""
    rerank_k: int = 64


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """One near row, and the sample that it is of."""

    row: int
    similarity: float
    sample: int
    key: str
    source_id: str
    texts: tuple[str, ...]
    """The caption of a caption row; the first captions of a sample row."""
    match: float | None = None
    """The logit by which a second stage ranks it; None: none has looked at it."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The rows nearest to a query, nearest first."""

    teacher: str
    modality: str
    split: str
    found: tuple[Neighbour, ...]


def neighbours(path: Path, query: Query, count: int) -> Neighbours:
    """Return the `count` rows nearest to the query in one split of the store at `path`.

    Raises:
        CusaError: the query, its teacher or its split cannot be had, or the teacher is not the stored one.
    """
    store = Store.open(path)
    slug = _slug(store, query)
    teacher = store.manifest.teachers[slug]
    modality = teacher.modality
    asked = _asked_of_pairs(query, modality)
    vector = _vector(store, slug, query)
    split = query.split or _split(store, teacher.level, query.row)
    store.rows(split, teacher.level)
    wanted = count + 1 if asked is None else max(count, query.rerank_k)
    similarity, rows = (found[0] for found in store.index(slug, split).search(vector[None], wanted))
    # A row that the teacher failed on is all zero; it is near nothing.
    kept = (rows >= 0) & (rows != (-1 if query.row is None else query.row))
    kept[kept] = store.features(slug).gather(rows[kept]).any(axis=1)
    # Rounded features may have a length a little above 1.
    rows, similarity, logits = rows[kept], similarity[kept].clip(max=1), None
    if query.rerank is not None and asked is not None:
        from pipeline.inspection.reranker import Reranker  # here: torch takes seconds to load

        places, logits = Reranker(query.rerank).rank(store, modality, rows, asked, query.rerank_k)
        rows, similarity = rows[places], similarity[places]
    found = described(store, modality, rows[:count], similarity[:count], logits)
    return Neighbours(teacher=slug, modality=modality, split=split, found=found)


def _slug(store: Store, query: Query) -> str:
    """Return the folder name of the teacher whose rows are searched.

    A text searches images where a cross-modal teacher is there; by name, either tower of one may be searched.
    """
    both = query.text is not None and query.image is not None
    asked = query.modality if query.row is not None else "text" if query.text is not None else "image"
    if query.row is None and query.modality not in (None, asked):
        raise CusaError(f"given with --{asked}", where="--modality", advice="Leave it out: it says what --row counts.")
    if query.teacher is None:
        if query.text is not None and (towers := cross_modal_slugs(store.manifest)):
            return towers["image"]
        return default_slug(store, "image" if query.image is not None else asked or "image")
    named = [slug for slug, one in store.manifest.teachers.items() if one.spec == query.teacher]
    # By the name that it was loaded by, which both towers of a model have.
    if named and query.teacher not in store.manifest.features:
        searched = "image" if query.text is not None else asked or "image"
        of_modality = [slug for slug in named if store.manifest.teachers[slug].modality == searched]
        return (of_modality or named)[0]
    held = store.features(query.teacher)
    towers = cross_modal_slugs(store.manifest, store.manifest.features[query.teacher].spec)
    if not both and asked not in (None, held.modality) and (query.row is not None or towers is None):
        raise CusaError(
            f"{query.teacher} is a teacher of {held.modality}s, and the query is of {asked}s. Name another."
        )
    return query.teacher


def _asked_of_pairs(query: Query, modality: str) -> str | bytes | None:
    """Return what a second stage compares with rows of a modality: a text, or an image's file; None without one.

    Raises:
        CusaError: no second stage looks at such a query and such rows.
    """
    if query.rerank is None:
        return None
    if query.text is not None and query.image is None and modality == "image":
        return _text(query.text)
    if query.image is not None and query.text is None and modality == "text":
        return bytes(_read(query.image))
    kinds = [name for name in ("row", "text", "image") if getattr(query, name) is not None]
    raise CusaError(
        where="--rerank",
        found=f"{modality}s searched by {' and '.join(kinds)}",
        expected="images searched by a text, or texts by an image",
        advice="Name a tower of a cross-modal teacher with --teacher: of images for --text, of texts for --image.",
    )


def _vector(store: Store, slug: str, query: Query) -> NDArray[np.float32]:
    """Return the query's feature: (dim,) float32."""
    if query.row is not None:
        vector: NDArray[np.float32] = store.features(slug).gather(np.array([query.row])).astype(np.float32)[0]
        if not vector.any():
            raise StoreError(f"{slug} has no features of row {query.row}, so nothing is near it. Ask for another row.")
        return vector
    items: dict[str, object] = {}
    if query.text is not None:
        items["text"] = _text(query.text)
    if query.image is not None:
        items["image"] = _read(query.image, decode_rgb)
    total = np.zeros(store.features(slug).dim, np.float32)
    for modality, item in items.items():
        tower = _tower(store, slug, modality)
        encoded = encode(load_stored(store, tower, query.weights), [item])[0]
        if not encoded.any():
            raise CusaError(f"{tower} could not encode this {modality}. Try another.")
        total += encoded
    return total / np.float32(np.linalg.norm(total) or 1)


def _tower(store: Store, slug: str, modality: str) -> str:
    """Return the teacher of a modality in whose space the rows of `slug` lie: itself, or its model's other tower.

    Raises:
        CusaError: there is none.
    """
    own = store.manifest.features[slug]
    if own.modality == modality:
        return slug
    towers = cross_modal_slugs(store.manifest, own.spec)
    if towers is None:
        raise CusaError(
            f"{slug} has no tower for {modality}s, so a text and an image cannot be one query. Extract both towers of "
            f"one model (cusa-extract --teacher run:… or open-clip:…), and name one with --teacher."
        )
    return towers[modality]


def _text(text: str) -> str:
    if not text.strip():
        raise CusaError("--text is empty; expected some words, such as --text 'a dog'.")
    return text.strip()


def _read(path: Path, decode: Callable[[bytes], Any] = bytes) -> Any:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise CusaError(f"The image {path} cannot be read ({error.strerror or error}). Name an image file.") from None


def _split(store: Store, level: Level, row: int | None) -> str:
    """Return the split of `row`, or the first split."""
    if row is None:
        return store.manifest.splits[0]
    return store.manifest.shard_of(level, row).split


def described(
    store: Store,
    modality: str,
    rows: NDArray[np.int64],
    similarity: NDArray[np.float32],
    logits: NDArray[np.float32] | None = None,
) -> tuple[Neighbour, ...]:
    """Return what a person sees of the rows (n,) of a modality that were found.

    With their similarities (n,), and a second stage's logits (n or more,), NaN where it has not looked.
    """
    texts, keys, ids = Column(store.captions["text"]), Column(store.samples["key"]), Column(store.samples["source_id"])
    samples = rows if modality == "image" else Column(store.captions["sample"]).numbers(rows)
    firsts, counts = (Column(store.samples[name]).numbers(samples) for name in ("caption_first", "caption_count"))
    described = []
    for place, sample in enumerate(samples.tolist()):
        first, shown = int(firsts[place]), min(int(counts[place]), _CAPTIONS_SHOWN)
        own = np.arange(first, first + shown) if modality == "image" else rows[place : place + 1]
        described.append(
            Neighbour(
                row=int(rows[place]),
                similarity=float(similarity[place]),
                sample=sample,
                key=keys.values(samples[place : place + 1])[0],
                source_id=ids.values(samples[place : place + 1])[0],
                texts=tuple(texts.values(own)),
                match=None if logits is None or np.isnan(logits[place]) else float(logits[place]),
            )
        )
    return tuple(described)


def render(near: Neighbours) -> Table:
    """Return the neighbours as a table."""
    what = "images" if near.modality == "image" else "captions"
    table = Listing(title=f"nearest {what} of {near.split}, by {near.teacher}", title_justify="left")
    is_reranked = any(one.match is not None for one in near.found)
    for column in ("rank", *["match"] * is_reranked, "similarity", "row", "sample"):
        table.add_column(column, justify="right")
    table.add_column("key")
    table.add_column("source id", overflow="fold")
    table.add_column("first captions" if near.modality == "image" else "caption", overflow="fold")
    for rank, one in enumerate(near.found, 1):
        match = ["" if one.match is None else f"{one.match:.3f}"] * is_reranked
        numbers = (str(rank), *match, f"{one.similarity:.4f}", str(one.row), str(one.sample))
        texts = cell(" · ".join(one.texts), 200)
        table.add_row(*numbers, cell(one.key), cell(one.source_id), texts)
    return table
