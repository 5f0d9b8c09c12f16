"""The training objective: the weighted sum of its terms, such as InfoNCE + α·CSA + β·USA (CUSA, 2403.05261, eq. 9).

It is the mean over some rows of their losses against all rows of the batch, the columns. In one process both are the
whole batch; where processes share a batch, each has its own rows, and the mean over equal shares is the whole batch's
objective. Beyond `tiles.ELEMENTS` similarities a matrix it is computed block by block of rows.

Shapes: M rows, N columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import permutations
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.encoded import tensors_of, with_tensors
from models.scoring import Cosine, Scorer
from stores.errors import ParameterError
from stores.parameters import Loss
from stores.plugins import made_by_factory
from train.losses import tiles
from train.losses.comparison import Comparison, Instances, Match, Scores, SoftLabels
from train.losses.coordination import PCMC, PCMR
from train.losses.cross_entropy import precise
from train.losses.image_text_matching import ITM
from train.losses.rematching import Rematched, WarmUp
from train.losses.set_terms import set_terms
from train.losses.terms import CSA, USA, X2VLM_BOUNDS, Hinge, InfoNCE, Temperature, Term, TrainingPairs

RECIPES: Final[Mapping[str, Callable[[Loss, Term], list[Term]]]] = {
    "cusa": lambda loss, original: [],
    "l2rm": lambda loss, original: [WarmUp(loss.rematching), Rematched(loss.rematching)],
    "maxmatch": lambda loss, original: set_terms(loss),
    "x2vlm": lambda loss, original: [ITM(loss.matching, cast(Temperature, original.temperatures["InfoNCE"]))],
}
"""What a recipe adds to the student's own loss, which it is given, and the soft labels."""
TOTAL: Final = "total"
GRADIENT: Final = "gradient"
"""What a step gives beside its terms: their weighted sum, and its gradient's norm."""


class Objective(nn.Module):
    """The weighted sum of terms. Its parameters, temperatures among them, learn beside the model's."""

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({term.name: term for term in terms})

    @property
    def terms(self) -> list[Term]:
        """The terms in their order."""
        return [cast(Term, term) for term in self.by_name.values()]

    def forward(self, compared: Comparison) -> tuple[Tensor, ...]:
        """Return the sum, and each term before weighting."""
        terms = self.terms
        trusting, uniform = compared.trusting, compared.uniform
        parts = [term(trusting if term.paired else uniform) for term in terms]
        total = terms[0].weight * parts[0]
        for term, part in zip(terms[1:], parts[1:], strict=True):
            total = total + term.weight * part
        return total, *parts

    @property
    def soft(self) -> bool:
        """Whether a term needs the teachers' features."""
        return any(term.soft for term in self.terms)

    @property
    def matches(self) -> bool:
        """Whether a term needs a student that matches."""
        return any(term.matches for term in self.terms)

    @property
    def unimodal(self) -> bool:
        """Whether a term teaches the uni-modal heads."""
        return any(term.unimodal for term in self.terms)

    def teaches(self, modality: str) -> bool:
        """Tell whether a term teaches the uni-modal head of a modality."""
        return any(term.unimodal and (term.taught is None or modality in term.taught) for term in self.terms)

    def temperatures(self) -> dict[str, float]:
        """Return the temperatures by name."""
        return {name: tau().item() for name, tau in self._temperatures().items()}

    def clamp_(self) -> None:
        """Bring all temperatures back within their bounds."""
        for temperature in self._temperatures().values():
            temperature.clamp_()

    def before_epoch(self, epoch: int) -> None:
        """Tell every term that an epoch begins, or is gone on with."""
        for term in self.terms:
            term.before_epoch(epoch)

    def begin(self, pairs: TrainingPairs) -> None:
        """Tell every term which pairs a training has."""
        for term in self.terms:
            term.begin(pairs)

    def surveying(self, epoch: int) -> list[Term]:
        """Return the terms that want all pairs to be looked at before an epoch."""
        return [term for term in self.terms if term.wants_survey(epoch)]

    def figures(self) -> dict[str, float]:
        """Return what curves should show of the terms' state, by name."""
        return {f"{term.name} {name}": value for term in self.terms for name, value in term.figures().items()}

    def clean(self) -> Tensor | None:
        """Return how likely each pair is right by a term that judges them, (captions,); None: no term does, or yet."""
        found = [column for term in self.terms if (column := term.clean_column()) is not None]
        return found[0] if found else None

    @torch.no_grad()
    def noted(self, columns: Instances, scores: Callable[[], Scores | None]) -> Instances:
        """Return the columns with what terms note of them; `scores` are those of all with all, None: cosines."""
        preparing = [term for term in self.terms if term.prepares]
        if not preparing:
            return columns
        whole = Comparison(columns, columns, scores())
        return columns._replace(notes={name: note for term in preparing for name, note in term.prepare(whole).items()})

    def remarks(self, losses: dict[str, float], batch_size: int) -> list[str]:
        """Return what the terms have to say of an epoch's mean losses."""
        said = [term.remark(losses[term.name], batch_size) for term in self.terms if term.name in losses]
        return [remark for remark in said if remark]

    def _temperatures(self) -> dict[str, Temperature]:
        return {name: cast(Temperature, tau) for term in self.terms for name, tau in term.temperatures.items()}


def make_objective(
    loss: Loss, taught: tuple[str, ...] = ("image", "text"), modalities: tuple[str, ...] = ("image", "text")
) -> Objective:
    """Return the objective that the parameters ask for; terms of weight zero are left out.

    Args:
        loss: weights and settings.
        taught: the modalities that have a teacher.
        modalities: the student's.

    Raises:
        ParameterError: two terms bear one name, or one that is taken, or a term of the user's own cannot be loaded.
    """
    labels = SoftLabels(tau=loss.teacher_temperature, top_k=loss.soft_top_k, mix=loss.mix)
    terms: list[Term] = [_original(loss, modalities)]
    if loss.alpha:
        terms.append(CSA(loss.alpha, labels))
    if loss.beta:
        terms.append(USA(loss.beta, labels, taught))
    for spec, weight in loss.extra.items():
        terms.append(_own(spec))
        terms[-1].weight = weight
    terms += RECIPES[loss.recipe](loss, terms[0])
    if taken := {TOTAL, GRADIENT} & {term.name for term in terms}:
        raise ParameterError(f"A term of the loss is called {taken.pop()}, a name that the curves need. Rename it.")
    names = [name for term in terms for name in {term.name, *term.temperatures}]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ParameterError(f"Two terms of the loss are called {doubled[0]}. Give each a name of its own.")
    return Objective(terms)


def check_modalities(loss: Loss, modalities: Collection[str]) -> None:
    """Raise a `ParameterError` where the loss is of modalities, or of pairs of them, that the student has not."""
    if loss.recipe == "l2rm" and not {"image", "text"} <= {*modalities}:
        expected = f"cusa: l2rm rematches images and texts, and the student has {', '.join(modalities)}"
        raise ParameterError(where="loss.recipe", found=loss.recipe, expected=expected)
    if loss.original not in ("pcmc", "pcmr"):
        return
    pairs = [frozenset(pair.split("/")) for pair in loss.coordination.weights]
    for name, pair in zip(loss.coordination.weights, pairs, strict=True):
        if len(pair) < 2 or not pair <= {*modalities} or pairs.count(pair) > 1:
            expected = f"pairs of two of {', '.join(modalities)}, each once, such as image/text"
            raise ParameterError(where="loss.coordination.weights", found=name, expected=expected)


def described(loss: Loss) -> str:
    """Return the objective as a formula, and how its terms are set."""
    first, *others = make_objective(loss).terms
    text = (f"{first.weight:g} · " if first.weight != 1 else "") + first.name
    text += "".join(f" + {term.weight:g} · {term.name}" for term in others)
    if loss.alpha or loss.beta:
        text += f", soft labels at τ_P = {loss.teacher_temperature:g}"
        text += f", each row's nearest {loss.soft_top_k}" if loss.soft_top_k else ""
        text += f", similarities of the two teachers mixed: {loss.mix}" if loss.mix != "each" else ""
    divided = loss.original == "infonce" and loss.reduction == "reference"
    return text + (", InfoNCE divided by the batch size once more" if divided else "")


def _original(loss: Loss, modalities: tuple[str, ...]) -> Term:
    """Return the student's own loss, which soft-label alignment adds to."""
    hinge, settings = loss.hinge, loss.coordination
    parted = {name.partition("/"): weight for name, weight in settings.weights.items()}
    weights = {(first, second): weight for (first, _, second), weight in parted.items()}
    if loss.recipe == "x2vlm" and loss.original != "infonce":
        expected = "infonce: the recipe x2vlm draws its negatives by its softmax"
        raise ParameterError(where="loss.original", found=loss.original, expected=expected)
    if loss.original == "infonce" and loss.recipe == "x2vlm":
        return InfoNCE(loss.matching.contrast, loss.reduction, X2VLM_BOUNDS)
    if loss.original == "infonce":
        return InfoNCE(reduction=loss.reduction)
    if loss.original == "hinge":
        return Hinge(
            margin=hinge.margin,
            negatives=hinge.negatives,
            warm_up=hinge.warm_up,
            mean=hinge.reduction == "mean",
        )
    if loss.original == "pcmc":
        return PCMC(weights=weights, each=modalities if settings.temperatures == "each" else ())
    if loss.original == "pcmr":
        return PCMR(weights=weights, gamma=settings.gamma, far=settings.far)
    if ":" not in loss.original:
        expected = "infonce, hinge, pcmc, pcmr, or package.module:factory of a term of your own"
        raise ParameterError(where="loss.original", found=loss.original, expected=expected)
    return _own(loss.original)


def _own(spec: str) -> Term:
    term: Any = made_by_factory(spec, ParameterError)
    if not isinstance(term, Term):
        raise ParameterError(f"{spec} returned a {type(term).__name__}, expected a train.losses.terms.Term.")
    return term


def compare(
    objective: Objective, rows: Instances, columns: Instances, scorer: Scorer, match: Match | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and its terms before weighting, detached.

    Args:
        objective: the terms.
        rows: whose losses are averaged, M of them.
        columns: what they are compared with, the rows among them; the same object where they are the rows.
        scorer: how items of two modalities are compared. All but the cosine run under the autocast of the caller; what
            follows is of their scores in float32.
        match: what the terms that need it match pairs by.
    """
    given, device = _given(scorer, rows, columns), rows.groups.device.type
    lowered = torch.is_autocast_enabled(device)

    def all_scores() -> Scores | None:
        with torch.autocast(device, torch.get_autocast_dtype(device), enabled=lowered):
            return given if rows is columns else _given(scorer, columns, columns)

    with torch.autocast(device, enabled=False):
        all_columns = objective.noted(columns.normalised(), all_scores)
        own_notes = {name: note[rows.places] for name, note in all_columns.notes.items()}
        some_rows = all_columns if rows is columns else rows.normalised()._replace(notes=own_notes)
        height = max(1, tiles.ELEMENTS // len(columns.groups))
        # A block's gradients reach tensors of rows and columns alone, no weights that pairs are matched by.
        if given is None and match is None and height < len(rows.groups):
            values = _tiled(objective, some_rows, all_columns, height)
        else:
            values = objective(Comparison(some_rows, all_columns, given, match))
    names = [term.name for term in objective.terms]
    return values[0], {name: part.detach() for name, part in zip(names, values[1:], strict=True)}


def _tiled(objective: Objective, rows: Instances, columns: Instances, height: int) -> tuple[Tensor, ...]:
    learned = dict(objective.named_parameters())

    def block(of_rows: tiles.Inputs, of_columns: tiles.Inputs, shared: tiles.Inputs) -> Sequence[Tensor]:
        compared = Comparison(with_tensors(rows, of_rows), with_tensors(columns, of_columns))
        values: tuple[Tensor, ...] = functional_call(objective, dict(zip(learned, shared, strict=True)), (compared,))
        return values

    return tiles.tiled_mean(block, tensors_of(rows), tensors_of(columns), list(learned.values()), height)


def compared(rows: Instances, columns: Instances, scorer: Scorer) -> Comparison:
    """Return the rows compared with the columns, by a scorer as in `compare`."""
    given = _given(scorer, rows, columns)
    return Comparison(rows.normalised(), columns.normalised(), given)


def _given(scorer: Scorer, rows: Instances, columns: Instances) -> Scores | None:
    """Return the scores of every two modalities both ways; a scorer sees the modality first that the student names so.

    Of one process's batch each pair is scored once: the transpose serves the other direction. Cosines are left to the
    comparison: None. Scores are in float32, or float64 where they are that.
    """
    if isinstance(scorer, Cosine):
        return None
    scores = {}
    for first, second in permutations(rows.encoded, 2):
        if (second, first) not in scores:
            scores[first, second] = precise(scorer.matrix(rows.encoded[first], columns.encoded[second]))
        elif rows is columns:
            scores[first, second] = scores[second, first].T
        else:
            scores[first, second] = precise(scorer.matrix(columns.encoded[second], rows.encoded[first])).T
    return scores
