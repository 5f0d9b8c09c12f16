"""Optimisation: the optimiser, the learning rate as a function of the step (docs/methods.md §2), and a step.

The objective is taken over the whole batch of all processes. Everything random in a step follows from (seed, epoch,
step, process), so a checkpoint needs no generator's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from models.aligned import AlignedModel
from models.encoded import Encoded
from models.inputs import Tensors
from models.matching import match_in_training
from stores.errors import ParameterError
from stores.hardware import exact_dtype
from stores.parameters import Train
from train.data.batches import Batch, TrainingData
from train.data.seeds import derived_seed
from train.evaluation.embed import measuring
from train.fit.grad_cache import cached_backward, encoded_in_parts
from train.fit.processes import Processes
from train.losses.comparison import Instances
from train.losses.objective import GRADIENT, TOTAL, Objective, compare, compared
from train.losses.terms import Term


class Learner(nn.Module):
    """What learns, the model and the objective, as one module: for the optimiser, checkpoints and several processes."""

    def __init__(self, model: AlignedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Mapping[str, Tensors]) -> dict[str, Encoded]:
        """Encode a batch: n items of each modality."""
        encoded: dict[str, Encoded] = self.model(inputs)
        return encoded


class Optimisation:
    """A model, its objective and its optimiser: what a batch does to them."""

    def __init__(
        self,
        model: AlignedModel,
        objective: Objective,
        data: TrainingData,
        settings: Train,
        accelerator: Accelerator,
        processes: Processes,
        matched_by: Mapping[tuple[str, str], str],
    ) -> None:
        """Wrap model and objective for several processes; `matched_by` is that of `Instances`."""
        self.model, self.objective = model, objective
        self._data, self._settings, self._processes = data, settings, processes
        self._accelerator, self._matched_by = accelerator, matched_by
        clean = data.pairs.clean if settings.clean_weight else None
        device = accelerator.device
        self._clean = None if clean is None else torch.from_numpy(clean).to(exact_dtype(device)).to(device)
        self._match = match_in_training(model.student, accelerator) if objective.matches else None
        learner = Learner(model, objective)
        optimizer = make_optimizer(learner, settings)
        if settings.compile:
            model.compile()
        self._wrapped, self.optimizer = accelerator.prepare(learner, optimizer)

    def rate(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step of an epoch."""
        steps = len(self._data.stream)
        return learning_rate(epoch * steps + step, self._settings.epochs * steps, self._settings)

    def step(self, batch: Batch, epoch: int = 0, step: int = 0) -> dict[str, Tensor]:
        """Take one optimiser step; return what it gave, still on the device.

        That is the loss's parts and total over this process's rows, and the norm of the gradient.
        """
        batch = batch.to(self._accelerator.device)
        place = (self._settings.seed, epoch, step, self._processes.rank)
        self.optimizer.zero_grad()
        micro = self._settings.micro_batch
        if micro is None or micro >= len(batch.groups):
            set_seed(derived_seed(*place))
            total, parts = self._compared(batch, self._wrapped(batch.inputs))
            self._accelerator.backward(total)
        else:
            total, parts = cached_backward(
                self._wrapped,
                batch.inputs,
                micro,
                lambda encoded: self._compared(batch, encoded),
                lambda number: set_seed(derived_seed(*place, number)),
                self._accelerator,
            )
        norm = self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self._settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(epoch, step)
        self.optimizer.step()
        self.objective.clamp_()
        return {name: value.detach() for name, value in {**parts, TOTAL: total, GRADIENT: norm}.items()}

    def survey(self, terms: Sequence[Term], epoch: int, pause: Callable[[], None]) -> None:
        """Give terms that judge pairs, before an epoch begins, their losses of all its pairs, by the captions' numbers.

        The model is as it is: without gradient, in evaluation mode. `pause` is called before each batch, and may raise.
        """
        captions: list[Tensor] = []
        losses: list[list[Tensor]] = [[] for _ in terms]
        self._data.stream.epoch, self._data.stream.first_step = epoch, 0
        micro = self._settings.micro_batch or self._settings.batch_size
        with measuring(self.model), torch.no_grad():
            for batch in self._data.loader:
                pause()
                batch = batch.to(self._accelerator.device)
                with self._accelerator.autocast():
                    rows = self._instances(batch, encoded_in_parts(self.model, batch.inputs, micro))
                    block = compared(rows, self._processes.columns(rows), self.model.scorer)
                captions.append(self._processes.gather(rows.numbers["caption"]))
                for term, found in zip(terms, losses, strict=True):
                    found.append(self._processes.gather(term.pair_losses(block)))
        for term, found in zip(terms, losses, strict=True):
            term.take_survey(epoch, torch.cat(captions), torch.cat(found))

    def _compared(self, batch: Batch, encoded: dict[str, Encoded]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare this process's rows with the rows of all processes."""
        rows = self._instances(batch, encoded)
        columns = self._processes.columns(rows)
        with self._accelerator.autocast():
            return compare(self.objective, rows, columns, self.model.scorer, self._match)

    def _certain(self, batch: Batch) -> Tensor | None:
        return None if self._clean is None else self._clean[batch.numbers["caption"] - self._data.pairs.first]

    def _instances(self, batch: Batch, encoded: dict[str, Encoded]) -> Instances:
        count = len(batch.groups)
        return Instances(
            encoded=encoded,
            places=self._processes.rank * count + torch.arange(count, device=batch.groups.device),
            groups=batch.groups,
            teachers=self._data.teachers(batch) if self.objective.soft else {},
            present=batch.present,
            numbers=batch.numbers,
            certain=self._certain(batch),
            matched_by=self._matched_by,
        )


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (norms, biases, temperatures) do not decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def check_schedule(settings: Train) -> None:
    """Refuse a learning rate that would rise to its end, as where the usual one is lowered below the final one.

    Raises:
        ParameterError: the final rate is greater than the highest.
    """
    if (final := settings.final_learning_rate) > settings.learning_rate:
        expected = f"at most train.learning_rate, {settings.learning_rate}"
        raise ParameterError(where="train.final_learning_rate", found=final, expected=expected)


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """Return the rate of a step, counted from 0, of `steps`: a linear rise, then a cosine down to the final rate."""
    rise = max(1, round(settings.warmup * steps))
    highest, final = settings.learning_rate, settings.final_learning_rate
    if step < rise:
        return highest * (1 / rise + (1 - 1 / rise) * step / rise)
    progress = (step - rise) / max(1, steps - rise)
    return final + (highest - final) * (1 + math.cos(math.pi * progress)) / 2
