"""Parameters of training and of measuring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from stores.modality import Level
from stores.parameters.kinds import STRICT, Fraction, Precision


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """How stage 2 trains."""

    seed: NonNegativeInt = 0
    epochs: PositiveInt = 8
    # pairs per step, over all processes; each pair is compared with all the others
    batch_size: Annotated[int, Field(ge=2)] = 128
    # pairs per forward pass in each process, where a batch does not fit (GradCache); null: all
    micro_batch: PositiveInt | None = None
    learning_rate: PositiveFloat = 3e-3
    # end of the cosine schedule
    final_learning_rate: NonNegativeFloat = 1e-5
    # share of the steps with linear warm-up
    warmup: Fraction = 0.05
    weight_decay: NonNegativeFloat = 0.05
    clip_norm: PositiveFloat = 1.0
    # all: every pair once per epoch; one: a random caption of each image
    captions: Literal["all", "one"] = "all"
    # use the student's training transform; false: its evaluation transform
    augment: bool = False
    # other stores mixed into every batch: {path: share of the pairs}; an epoch is one pass over the main store
    mix_in: dict[str, Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default_factory=dict)
    # clean column of the store's pairs, made by cusa-store suspects or a training: what l2rm splits by, in place of its
    # own survey
    clean: str | None = None
    # pairs whose clean probability is less are left out
    clean_at_least: Fraction = 0.0
    # each pair weighs as much as it is likely to be right by `clean`, in InfoNCE, the hinge, CSA and PCMC; no other
    # term weighs pairs
    clean_weight: bool = False
    # shards that are read and shuffled together
    shuffle_shards: PositiveInt = 16
    device: str = "auto"
    precision: Precision = "auto"
    # torch.compile the student
    compile: bool = False
    # processes per training process that decode images
    workers: NonNegativeInt = 0
    # teacher features up to this size are kept on the device; larger ones are gathered on the host
    device_table_gib: NonNegativeFloat = 4.0
    # decoded images kept in each loading process, up to this size; not with augmentation
    cache_gib: NonNegativeFloat = 0.5
    # first train the same student with InfoNCE alone, same seed and epochs, to show what the soft labels change
    compare: bool = True
    # steps between checkpoints within an epoch; each epoch ends with one as well
    save_every: PositiveInt = 500
    # also keep the weights of every n-th epoch; 0: only the best and the last
    keep_every: NonNegativeInt = 0
    # also write TensorBoard event files
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rerank:
    """A second stage: the first stage's nearest are ranked anew by a student that looks at an image and a text at once.

    What it does not look at ranks behind, as the first stage has it.
    """

    # whose `match` it is: self, a run's folder, a checkpoint, x2vlm:<file>, blip:<name or folder> or another student.
    # Of self, the validation's RSUM, by which the best checkpoint is chosen, is reranked as well
    student: str = "self"
    # how many of the nearest, each way
    k: PositiveInt = 128
    # the score: replace: the logit of match (X2-VLM, ALBEF); add: the first stage's added to it (BLIP)
    combine: Literal["replace", "add"] = "replace"
    # pairs of one image at once: what the device's memory has to hold
    batch_size: PositiveInt = 256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluation:
    """What is measured, and on which splits."""

    # measured after each epoch; selects the best checkpoint
    validation: str = "val"
    # measured once, with the best checkpoint
    test: str = "test"
    batch_size: PositiveInt = 256
    # a second stage after the first; null: none
    rerank: Rerank | None = None
    # items' tokens or regions of a modality that are more than this lie on disk, in float16, while they are compared
    parts_gib: NonNegativeFloat = 4.0
    # of a student of more than two modalities, what is a hit: the same caption (of two modalities that both have one
    # for each), the same sample, or the same class
    hits: Level = "caption"
    # modalities combined as one query or item, such as [image+text]: each against every one that is not in it
    enriched: list[str] = Field(default_factory=list)
    # unit: the sum of the parts' vectors, at length one; sum: as it is, so that similarities are sums of the parts'
    enrichment: Literal["unit", "sum"] = "unit"
