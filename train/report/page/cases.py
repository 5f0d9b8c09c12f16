"""Cases (CUSA, figure 5): queries with their first answers, by every model of the page side by side.

Most are the queries on which the models differ most, of two as many in favour of the one as of the other; the rest are
drawn at random. A model alone has random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores import Store
from stores.columns import Column
from stores.thumbnails import thumbnail
from train.evaluation.evaluate import ownership
from train.evaluation.rankings import Ranks, Rows, top
from train.report.page.page_models import PageModel
from train.report.page.relevance import PairRelevance
from train.report.page.sample import SEED

SHOWN: Final = 5
"""Answers to a query."""
EACH: Final = 2
"""Queries of each kind of choice."""
THUMBNAIL: Final = 160
"""Longest side of a picture, in pixels."""

_Query = Callable[[int], "Item"]
_Answer = Callable[[int, int], "Item"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture (a data URI, empty where it cannot be decoded) or a text, and how it stands to the query."""

    picture: str | None = None
    text: str | None = None
    kind: str = ""
    """own, true or other."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model answers."""

    model: str
    rank: int
    """Of the first answer that the data set pairs with the query, from 1."""
    items: list[Item]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A query, why it is shown, and its answers by every model."""

    chosen: str
    query: Item
    answers: list[Answers]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The cases both ways."""

    to_images: list[Case]
    to_texts: list[Case]
    known: bool
    """Whether the store tells what is true beside its own pairs."""


@dataclass(frozen=True)
class _Ranked:
    """One direction: rows of similarities and ranks (Q,) by model, and the chosen queries."""

    rows: dict[str, Callable[[NDArray[np.int64]], Rows]]
    ranks: dict[str, Ranks]

    def chosen(self) -> list[tuple[int, str]]:
        """Return places of queries, and why they are shown."""
        ranks = np.log1p(np.stack(list(self.ranks.values())))
        found: dict[int, str] = {}
        if len(ranks) == 2:
            gain = ranks[0] - ranks[1]
            order = np.argsort(-gain, kind="stable")
            names = list(self.ranks)
            found |= {int(place): f"most in favour of {names[1]}" for place in order[:EACH] if gain[place] > 0}
            found |= {int(place): f"most in favour of {names[0]}" for place in order[-EACH:] if gain[place] < 0}
        elif len(ranks) > 2:
            spread = np.ptp(ranks, axis=0)
            order = np.argsort(-spread, kind="stable")[: 2 * EACH]
            found |= {int(place): "the models differ most" for place in order if spread[place] > 0}
        wanted = EACH if len(ranks) > 1 else 3 * EACH
        drawn = [int(place) for place in np.random.default_rng(SEED).permutation(ranks.shape[1]) if place not in found]
        return [*found.items(), *((place, "drawn at random") for place in drawn[:wanted])]

    def answers(self, places: Sequence[int]) -> dict[str, NDArray[np.int64]]:
        """Return the first answers to the queries at `places`, by model: (n, up to `SHOWN`)."""
        return {name: np.concatenate(list(top(rows(np.array(places)), SHOWN))) for name, rows in self.rows.items()}


def cases(store: Store, split: str, models: Sequence[PageModel]) -> Cases:
    """Choose the queries among images and texts of the `split`, and find their answers."""
    to_texts, to_images = _ranked(store, split, models)
    first_image, first_text = int(store.rows(split, "sample")[0]), int(store.rows(split, "caption")[0])
    images, texts = to_texts.chosen(), to_images.chosen()
    truth = PairRelevance(
        store, (first_text + place for place, _ in texts), (first_image + place for place, _ in images)
    )
    captions = Column(store.captions["text"])

    def picture(place: int, kind: str = "") -> Item:
        return Item(picture=thumbnail(store.images[first_image + place], THUMBNAIL), kind=kind)

    def text(place: int, kind: str = "") -> Item:
        return Item(text=captions.values(np.array([first_text + place]))[0], kind=kind)

    def kind(image: int, caption: int) -> str:
        return truth.kind(first_text + caption, first_image + image)

    return Cases(
        to_images=_cases(to_images, texts, text, lambda query, place: picture(place, kind(place, query))),
        to_texts=_cases(to_texts, images, picture, lambda query, place: text(place, kind(query, place))),
        known=truth.known,
    )


def _cases(ranked: _Ranked, chosen: list[tuple[int, str]], query: _Query, answer: _Answer) -> list[Case]:
    found = ranked.answers([place for place, _ in chosen])
    return [
        Case(
            chosen=why,
            query=query(place),
            answers=[
                Answers(
                    model=name,
                    rank=int(ranked.ranks[name][place]) + 1,
                    items=[answer(place, int(item)) for item in rows[number]],
                )
                for name, rows in found.items()
            ],
        )
        for number, (place, why) in enumerate(chosen)
    ]


def _ranked(store: Store, split: str, models: Sequence[PageModel]) -> tuple[_Ranked, _Ranked]:
    """Return both directions, from images and from texts."""
    own = ownership(store, split)
    to_texts, to_images = _Ranked({}, {}), _Ranked({}, {})
    for model in models:
        found = model.tested.similarities
        rows, ranks = (found.rows, found.columns), found.ranks(own)
        for direction, its_rows, its_ranks in zip((to_texts, to_images), rows, ranks, strict=True):
            direction.rows[model.name], direction.ranks[model.name] = its_rows, its_ranks
    return to_texts, to_images
