"""A second stage as `eval.rerank` asks for it: whose it is, what the first stage ranks by, and what each k gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy import sparse

from models.aligned import AlignedModel
from models.matching import matcher_of, matches
from models.scoring import Cosine, Scorer
from models.trained import load_aligned
from stores.parameters import Rerank
from train.evaluation.embed import SplitEncoded, measuring
from train.evaluation.evaluate import crossed
from train.evaluation.every_pair import asked, both_ways
from train.evaluation.metrics import recalls
from train.evaluation.rankings import Ranks
from train.evaluation.reranking import Candidates, RerankedSimilarities, reranked
from train.evaluation.similarities import Similarities

SELF = "self"
_LEAST = 16
"""The first k of a table: recalls to 10 need as many."""


class SecondStage:
    """A student that reranks: the model's own, or another one over the model's first stage."""

    def __init__(self, settings: Rerank, own: AlignedModel, accelerator: Accelerator) -> None:
        """Take the student that `settings` name, where that is not the model's `own`.

        Raises:
            CusaError: there is no such student, or it cannot match.
        """
        self.is_own = settings.student == SELF
        self._settings, self._accelerator = settings, accelerator
        self.model = own if self.is_own else load_aligned(settings.student).eval().to(accelerator.device)
        self._matcher = matcher_of(self.model.student, "The student" if self.is_own else settings.student)

    def first_scorer(self, own: AlignedModel) -> Scorer:
        """Return what the first stage ranks by: vectors alone, where the own scorer of pairs is the second stage."""
        return Cosine() if self.is_own and not matches(own.student) else own.scorer

    def encoded(self, own: SplitEncoded, embed: Callable[[AlignedModel, bool], SplitEncoded]) -> SplitEncoded:
        """Return a split's items by this stage's model; `embed` is given a model and whether its parts are needed."""
        return own if self.is_own else embed(self.model, True)

    def over(
        self, first: Similarities, encoded: SplitEncoded, folder: Path, pause: Callable[[], None] = lambda: None
    ) -> RerankedSimilarities:
        """Rerank a split, encoded by this stage's model; a scoring that was interrupted goes on in the `folder`."""
        images, texts = (encoded[modality] for modality in crossed(self.model))
        settings = self._settings
        how = settings.k, settings.combine, settings.batch_size
        with measuring(self.model):
            return reranked(first, self._matcher, (images, texts), *how, self._accelerator, folder, pause)


def check_second_stage(settings: Rerank | None) -> None:
    """Raise a `CusaError` where another student is to rerank that there is not, or that cannot: before any training."""
    if settings is not None and settings.student != SELF:
        matcher_of(load_aligned(settings.student).student, settings.student)


def own_second_stage(settings: Rerank | None, model: AlignedModel, accelerator: Accelerator) -> SecondStage | None:
    """Return the second stage that epochs are chosen by: another student's says nothing of this one's epochs."""
    return SecondStage(settings, model, accelerator) if settings and settings.student == SELF else None


class AtDepth(NamedTuple):
    """What reranking so many of each query's nearest gives, and costs."""

    k: int
    """0: the first stage alone."""
    pairs: int
    seconds: float
    """Of scoring these pairs, by the mean of all that were scored."""
    recalls: tuple[dict[str, float], dict[str, float]]

    @property
    def rsum(self) -> float:
        """The sum of the six recalls."""
        return sum(sum(one.values()) for one in self.recalls)


def by_depth(found: RerankedSimilarities, own: sparse.csr_array) -> list[AtDepth]:
    """Return what each k gives, in powers of two up to the one that was scored, from one scoring.

    `own` (n, m) sparse says which items belong together; who has no partner asks nothing.
    """
    ways = own, sparse.csr_array(own.T)
    queries = [asked(matrix) for matrix in ways]
    first = both_ways(found.first, own)
    table = [AtDepth(0, 0, 0.0, (recalls(first[0]), recalls(first[1])))]
    depths = [2**power for power in range(31) if _LEAST <= 2**power < found.depth]
    for k in [*depths, found.depth]:
        some = found.limited(k)
        images, texts = (
            _best(candidates, matrix, those, ranks)
            for candidates, matrix, those, ranks in zip(
                (some.texts_of_images, some.images_of_texts), ways, queries, first, strict=True
            )
        )
        table.append(AtDepth(k, some.pairs, some.pairs * found.seconds_per_pair, (recalls(images), recalls(texts))))
    return table


def _best(found: Candidates, own: sparse.csr_array, queries: NDArray[np.int64], first: Ranks) -> Ranks:
    """Return the best rank of the partners of some queries: among their candidates, else as the first stage has it."""
    ids = found.ids[queries]
    scores = np.where(ids < 0, -np.inf, found.scores[queries])
    partner = np.asarray(own[np.broadcast_to(queries[:, None], ids.shape).ravel(), ids.ravel()]).reshape(ids.shape)
    # By falling score, and equal ones by rising number, as everywhere.
    order = np.lexsort((ids, -scores), axis=1)
    ranked = np.take_along_axis(partner.astype(bool) & (ids >= 0), order, axis=1)
    ranks: Ranks = np.where(ranked.any(axis=1), ranked.argmax(axis=1), first)
    return ranks
