"""Cases (CUSA, figure 5): queries with their first answers, by every model of the page side by side.

Most are the queries on which the models differ most, of two as many in favour of the one as of the other; the rest are
drawn at random. A model alone has random ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import sparse

from stores import Store
from stores.columns import Column
from stores.thumbnails import thumbnail
from train.evaluation.evaluate import ownership
from train.evaluation.every_pair import asked, both_ways
from train.evaluation.rankings import Ranks, top
from train.report.page.page_models import PageModel
from train.report.page.sample import SEED, PairRelevance

SHOWN: Final = 5
"""Answers to a query."""
EACH: Final = 2
"""Queries of each kind of choice."""
THUMBNAIL: Final = 160
"""Longest side of a picture, in pixels."""


class Item(NamedTuple):
    """A picture (a data URI, empty where it cannot be decoded) or a text, and how it stands to the query."""

    picture: str | None = None
    text: str | None = None
    kind: str = ""
    """own, true or other."""


class Answers(NamedTuple):
    """What one model answers."""

    model: str
    rank: int
    """Of the first answer that the data set pairs with the query, from 1."""
    items: list[Item]


class Case(NamedTuple):
    """A query, why it is shown, and its answers by every model."""

    chosen: str
    query: Item
    answers: list[Answers]


class Cases(NamedTuple):
    """The cases both ways."""

    to_images: list[Case]
    to_texts: list[Case]
    known: bool
    """Whether the store tells what is true beside its own pairs."""


def cases(store: Store, split: str, models: Sequence[PageModel]) -> Cases:
    """Choose the queries among images and texts of the `split`, and find their answers."""
    own = ownership(store, split)
    partnered = [asked(matrix) for matrix in (own, sparse.csr_array(own.T))]
    ranks = {model.name: both_ways(model.tested.similarities, own) for model in models}
    images, texts = (
        {int(partnered[way][place]): why for place, why in _chosen({n: both[way] for n, both in ranks.items()}).items()}
        for way in (0, 1)
    )
    first_image, first_text = int(store.rows(split, "sample")[0]), int(store.rows(split, "caption")[0])
    truth = PairRelevance(store, [first_text + place for place in texts], [first_image + place for place in images])
    captions = Column(store.captions["text"])

    def picture(place: int, kind: str = "") -> Item:
        return Item(picture=thumbnail(store.images[first_image + place], THUMBNAIL), kind=kind)

    def text(place: int, kind: str = "") -> Item:
        return Item(text=captions.values(np.array([first_text + place]))[0], kind=kind)

    def answer(way: int, query: int, item: int) -> Item:
        image, caption = (query, item) if way == 0 else (item, query)
        return (text, picture)[way](item, truth.kind(first_text + caption, first_image + image))

    def answered(way: int, queries: Mapping[int, str]) -> list[Case]:
        places, found = np.array(list(queries)), {}
        ranked = np.searchsorted(partnered[way], places)
        for model in models:
            similarities = model.tested.similarities
            rows = (similarities.rows, similarities.columns)[way](places)
            found[model.name] = np.concatenate(list(top(rows, SHOWN))).tolist()
        return [
            Case(
                why,
                (picture, text)[way](place),
                [
                    Answers(
                        name,
                        int(ranks[name][way][ranked[number]]) + 1,
                        [answer(way, place, item) for item in items[number]],
                    )
                    for name, items in found.items()
                ],
            )
            for number, (place, why) in enumerate(queries.items())
        ]

    return Cases(to_images=answered(1, texts), to_texts=answered(0, images), known=truth.known)


def _chosen(ranks: Mapping[str, Ranks]) -> dict[int, str]:
    """Return by place of a query why it is shown, from the models' ranks of its own answers: (Q,) each."""
    logs = np.log1p(np.stack(list(ranks.values())))
    found: dict[int, str] = {}
    if len(ranks) == 2:
        gain = logs[0] - logs[1]
        order = np.argsort(-gain, kind="stable")
        names = list(ranks)
        found |= {int(place): f"most in favour of {names[1]}" for place in order[:EACH] if gain[place] > 0}
        found |= {int(place): f"most in favour of {names[0]}" for place in order[-EACH:] if gain[place] < 0}
    elif len(ranks) > 2:
        spread = np.ptp(logs, axis=0)
        order = np.argsort(-spread, kind="stable")[: 2 * EACH]
        found |= {int(place): "the models differ most" for place in order if spread[place] > 0}
    wanted = EACH if len(ranks) > 1 else 3 * EACH
    drawn = [int(place) for place in np.random.default_rng(SEED).permutation(logs.shape[1]) if place not in found]
    return found | dict.fromkeys(drawn[:wanted], "drawn at random")
