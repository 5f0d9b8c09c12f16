"""Parameters of the loss, and of its recipes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from stores.modality import Level
from stores.parameters.kinds import STRICT, Fraction


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Hinge:
    """The triplet loss with margin, where `loss.original` is hinge."""

    margin: PositiveFloat = 0.2
    # hardest: the negative nearest to each item alone counts; all: every one that violates the margin
    negatives: Literal["hardest", "all"] = "hardest"
    # epochs in which all violations count, before the hardest: it keeps a student from a random start off a plateau
    warm_up: NonNegativeInt = 0
    # sum over the batch, as the authors do, or mean
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rematching:
    """How wrong pairs are found and matched anew, where `loss.recipe` is l2rm (L2RM, arXiv 2403.05105)."""

    # epochs in which all pairs are learned by a symmetric cross-entropy, which bears wrong ones
    warm_up: NonNegativeInt = 3
    # the two components of the pairs' losses
    mixture: Literal["beta", "gaussian"] = "beta"
    # ρ, the mass that is transported
    mass: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    # λ, the weight of the transport's entropy
    reg: PositiveFloat = 0.07
    # fixed: 1 − score; learned: a monotone map of the score, from the clean pairs
    cost: Literal["fixed", "learned"] = "fixed"
    # τ of the symmetric losses
    tau: PositiveFloat = 0.05
    # of the pairs that are matched anew
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Matching:
    """Image-text matching beside the contrastive loss, where `loss.recipe` is x2vlm (X2-VLM, arXiv 2211.12402)."""

    # of the contrastive loss
    contrast: PositiveFloat = 1.0
    # of matching
    weight: PositiveFloat = 1.0
    # how much of the teachers' cosine a drawn negative's target of match is; 0: none
    soft_negatives: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Coordination:
    """Every modality against every other, where `loss.original` is pcmc or pcmr (arXiv 2401.16347)."""

    # of PCMC: one for all pairs of modalities, or each its own
    temperatures: Literal["one", "each"] = "one"
    # of PCMR: γ, the weight of what matches; the rest is that of what does not
    gamma: Fraction = 0.5
    # of PCMR, what does not match: zero: should have a cosine of 0; below: of 0 or less
    far: Literal["zero", "below"] = "zero"
    # of pairs of modalities, such as {image/text: 2.0}; the others weigh 1
    weights: dict[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")], NonNegativeFloat] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SetTerms:
    """Terms that `loss.recipe` maxmatch adds (arXiv 2506.21538); the weight of each, of which 0 leaves it out."""

    # of the hinge, a mean, with the other settings of `loss.hinge`
    hinge: NonNegativeFloat = 1.0
    # λ_GD: members away from the vector that their set shares
    discriminative: NonNegativeFloat = 0.1
    # λ_ISD: members of a set apart
    divergence: NonNegativeFloat = 0.1
    # λ_MMD: all members of images, and of texts, as one cloud
    mmd: NonNegativeFloat = 0.01
    # λ_Div: apart in what they add to the shared vector
    diversity: NonNegativeFloat = 0.0
    # s and δ of the first two: e^(s (cosine − δ))
    scale: PositiveFloat = 1.0
    margin: float = 0.5
    # of the divergence: exp, which never ends, or hinge, which ends at the margin; of final members or what they add
    form: Literal["exp", "hinge"] = "exp"
    of: Literal["final", "residual"] = "final"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Loss:
    """The student's original loss + alpha · CSA + beta · USA (CUSA, arXiv 2403.05261, eq. 9)."""

    # cusa: these alone; l2rm: wrong pairs are found, and matched anew; maxmatch: terms of sets besides; x2vlm:
    # image-text matching besides
    recipe: Literal["cusa", "l2rm", "maxmatch", "x2vlm"] = "cusa"

    # infonce, hinge, pcmc, pcmr, or package.module:factory of a term of your own
    original: str = "infonce"
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 1.5
    # τ_P of the soft labels (eq. 5); the paper's is 1
    teacher_temperature: PositiveFloat = 0.1
    # soft labels keep the k nearest columns of each row; null: all of the batch (the paper)
    soft_top_k: PositiveInt | None = None
    # similarities behind the soft labels: each modality's own teacher's, the mean of both, their geometric mean
    mix: Literal["each", "add", "dot"] = "each"
    # mean: the paper's InfoNCE; reference: divided by the batch size once more, as the authors' code does
    reduction: Literal["mean", "reference"] = "mean"
    hinge: Hinge = Field(default_factory=Hinge)
    rematching: Rematching = Field(default_factory=Rematching)
    coordination: Coordination = Field(default_factory=Coordination)
    sets: SetTerms = Field(default_factory=SetTerms)
    matching: Matching = Field(default_factory=Matching)
    # where items of two modalities match: those of one caption (of modalities that both have one), of one sample, or
    # of one class. With a class's own modality it is always the class
    match: Level = "caption"
    # further terms of your own: {package.module:factory: weight}
    extra: dict[str, NonNegativeFloat] = Field(default_factory=dict)
