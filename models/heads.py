"""The student `heads`: a head for each of any number of modalities, over stored features or another student's tower.

Frozen encoders are heads over stored features: training is then a few small matrices. With a tower in place of a table
the same losses fine-tune it. Shapes: n items, P numbers of a feature, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from models.encoded import Encoded
from models.inputs import Input, Padded, Stored, Tensors
from models.scoring import Cosine, Scorer
from models.students import MAXMATCH, Parts, Student, as_student, parameters_of
from stores import Store, parameters
from stores.errors import StudentError


class FeatureHead(nn.Sequential):
    """LayerNorm(P), then Linear P→D; or with a hidden layer Linear–GELU–Linear of width max(P, D)."""

    def __init__(self, width: int, dim: int, hidden: bool) -> None:
        inner = max(width, dim)
        layers = [nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, dim)] if hidden else [nn.Linear(width, dim)]
        super().__init__(nn.LayerNorm(width), *layers)


class StudentOfHeads(nn.Module):
    """Heads that bring every modality's features into one space; items are compared by their cosine."""

    scorer: Scorer = Cosine()

    def __init__(self, settings: parameters.Student, load: Callable[[str], Any]) -> None:
        """Make the heads; `load` loads the students that towers are taken from, each once.

        Raises:
            StudentError: there are no heads, or one is of neither features nor a tower that there is, or of both.
        """
        super().__init__()
        if not settings.heads:
            advice = "Name some, such as {image: {features: hog-color}, text: {features: minilm}}."
            raise StudentError("student.heads is empty, and the student `heads` has no others. " + advice)
        self.embed_dim = settings.dim
        specs = dict.fromkeys(head.tower for head in settings.heads.values() if head.tower)
        loaded = {spec: load(spec) for spec in specs}
        self.models = nn.ModuleList(loaded.values())
        self.towers: dict[str, Parts] = {}
        self._encoders: dict[str, Student] = {}
        self.inputs: dict[str, Input] = {}
        widths = {name: self._opened(name, head, loaded) for name, head in settings.heads.items()}
        self.inputs = _samples_first(self.inputs)
        self.heads = nn.ModuleDict(
            {name: FeatureHead(widths[name], self.embed_dim, head.hidden) for name, head in settings.heads.items()}
        )
        for spec, model in loaded.items():
            _leave_out_others(model, {name for name, head in settings.heads.items() if head.tower == spec})

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        """Encode n items of a modality: (n, D)."""
        if modality in self._encoders:
            tensors = self._encoders[modality].encode(modality, tensors).vector
        if isinstance(tensors, Padded):
            raise StudentError(f"The head of {modality} is of vectors, and its input gives none.")
        vectors: Tensor = self.heads[modality](tensors)
        return Encoded(vectors)

    def set_grad_checkpointing(self) -> None:
        """Let the towers compute their activations again in the backward pass; heads alone have few."""
        for model in self.models:
            switch_on: Any = model.set_grad_checkpointing
            switch_on()

    def _opened(self, name: str, head: parameters.Head, loaded: Mapping[str, Any]) -> int:
        """Take in a modality's input; return how many numbers the head is given."""
        if (head.tower is None) == (head.features is None):
            raise StudentError(f"student.heads.{name} must name features of the store, or a tower: one of them.")
        if head.tower is not None:
            model = loaded[head.tower]
            student = as_student(model)
            if name not in student.inputs:
                known = ", ".join(student.inputs)
                raise StudentError(f"student.heads.{name}: {head.tower} has no such tower; it has {known}.")
            self._encoders[name], self.inputs[name] = student, student.inputs[name]
            self.towers[name] = getattr(model, "towers", {}).get(name, [])
            return student.embed_dim
        if head.width is None or head.level is None or head.features is None:
            raise StudentError(f"student.heads.{name}: how wide {head.features} is, and of which rows, is not known.")
        self.inputs[name] = Stored(head.features, head.level)
        return head.width


def _samples_first(inputs: dict[str, Input]) -> dict[str, Input]:
    """Return modalities in an order in which pairs are measured and shown: a sample's before the first caption's."""
    levels = [given.level for given in inputs.values()]
    if "sample" not in levels or "caption" not in levels[: levels.index("sample")]:
        return inputs
    return dict(sorted(inputs.items(), key=lambda item: item[1].level == "caption"))


def with_widths(settings: parameters.Student, store: Store) -> parameters.Student:
    """Return the settings of a student with what the store says of the features that its heads read.

    Raises:
        StoreError: the store has no such features.
        StudentError: they have another shape than the student takes, or are others than the settings name.
    """
    heads = {}
    for name, head in settings.heads.items():
        if head.features is None:
            heads[name] = head
            continue
        found = store.features(head.features)
        if {name, found.modality} == {"image", "text"}:
            said = f"{head.features}, of {found.modality}s"
            raise StudentError(where=f"student.heads.{name}", found=said, expected=f"features of {name}s")
        local = settings.model.startswith(MAXMATCH)
        takes = "several local features, such as 36 × 2048" if local else "vectors"
        if len(found.shape) != (2 if local else 1):
            shape = " × ".join(map(str, found.shape))
            fault = f"the features {head.features} are {shape}"
            raise StudentError(f"student.heads.{name}: {fault}; {settings.model} takes {takes}.")
        width = found.shape[-1]
        known = replace(head, level=found.level, width=width)
        if (head.level or found.level, head.width or width) != (found.level, width):
            raise StudentError(
                f"student.heads.{name}: the features {head.features} have {width} numbers for each {found.level}, "
                f"expected {head.width or width} for each {head.level or found.level}."
            )
        heads[name] = known
    return replace(settings, heads=heads)


def _leave_out_others(model: nn.Module, used: set[str]) -> None:
    """Let only the towers that are used learn, of a model that says which they are: each parameter must take part."""
    towers: Mapping[str, Parts] = getattr(model, "towers", {})
    if not used <= towers.keys():
        return
    kept = {id(parameter) for name in used for parameter in parameters_of(towers[name])}
    kept -= {id(parameter) for parameter in parameters_of(getattr(model, "matching_parts", []))}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
