"""One training: from a store and parameters to a best checkpoint, resumable at the last finished epoch.

1. The stream deals the pairs of an epoch; workers decode and tokenise; teachers' features are joined by row.
2. InfoNCE + α·CSA + β·USA, gradient clipping, AdamW, cosine schedule with warm-up; temperatures stay in bounds.
3. After each epoch the validation split is measured; `last.safetensors` holds everything to go on from, and
   `best.safetensors` the weights with the highest validation RSUM.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from dvclive import Live
from rich.progress import Progress
from scmrepo.exceptions import SCMError
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader

from stores import Store, TrainingError, TrainParameters
from stores.commands import leave_interrupts_to_the_parent
from stores.console import console, progress_bar
from stores.layout import teacher_slug
from stores.parameters import Loss, Train, as_dict
from train.checkpoint import load_checkpoint, read_record, save_checkpoint
from train.data import Batch, Join, PairBatches
from train.embed import embed_split
from train.epoch import Epoch
from train.evaluate import retrieval
from train.model import AlignedModel
from train.objective import objective
from train.stream import PairStream
from train.student import load_student

LOOK_EVERY: Final = 10
"""Steps between two looks at the losses: each look waits for the device."""


class Training:
    """The state of one training, in the folder `run`."""

    def __init__(
        self, run: Path, store: Store, parameters: TrainParameters, loss: Loss, title: str, accelerator: Accelerator
    ) -> None:
        self.best, self.last = run / "best.safetensors", run / "last.safetensors"
        self._run, self._store, self._parameters, self._loss = run, store, parameters, loss
        self._title, self._accelerator = title, accelerator
        self._settings = parameters.train
        set_seed(_seed(self._settings.seed, 0))
        self.model = AlignedModel(load_student(parameters.student.model))
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions run faster so
        slugs = (teacher_slug(parameters.teachers.image, "image"), teacher_slug(parameters.teachers.text, "text"))
        self._join = Join(store, "train", slugs, accelerator.device, self._settings.device_table_gib)
        self._stream = _stream(store, self._settings, self._join)
        self.loader = _loader(store, self.model, self._stream, self._join, self._settings, accelerator)
        optimizer = _optimizer(self.model, self._settings)
        schedule = _schedule(optimizer, self._settings, len(self._stream))
        self._wrapped, self._optimizer, self._schedule = accelerator.prepare(self.model, optimizer, schedule)
        self.history: list[Epoch] = []

    def fit(self) -> list[Epoch]:
        """Train, from the last finished epoch if there is one, and return every epoch's figures."""
        self._resume()
        self._announce()
        with progress_bar() as progress, _live(self._run / "dvclive") as curves:
            # The checkpoint's history is the truth: a run that was killed between saving and logging loses no point.
            for figures in self.history:
                _log(curves, figures)
            for epoch in range(len(self.history), self._settings.epochs):
                figures = self._epoch(epoch, progress)
                self.history.append(figures)
                self._save(figures)
                _log(curves, figures)
        return self.history

    def _resume(self) -> None:
        if not self.last.exists():
            return
        record = load_checkpoint(self.last, self.model, self._optimizer)
        self.history = [Epoch(**epoch) for epoch in record["history"]]
        self._schedule.load_state_dict(record["schedule"])
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _announce(self) -> None:
        stream, done = self._stream, len(self.history)
        left_out = f", {stream.left_out:,} left out for want of features" if stream.left_out else ""
        console.print(
            f"{self._title}: {stream.pairs:,} pairs an epoch in {len(stream):,} steps of {self._settings.batch_size}, "
            f"{stream.dropped} over an even number dropped{left_out}; teacher features "
            f"{'on the device' if self._join.on_device else 'gathered on the host'}; {self._accelerator.device.type}, "
            f"{'bf16' if self._accelerator.mixed_precision == 'bf16' else 'fp32'}"
            + (f"; resumed after epoch {done} of {self._settings.epochs}" if 0 < done < self._settings.epochs else "")
        )

    def _epoch(self, epoch: int, progress: Progress) -> Epoch:
        # Everything random in an epoch follows from the seed and the epoch, so that a resumed run needs no RNG state.
        set_seed(_seed(self._settings.seed, epoch + 1))
        self._stream.epoch = epoch
        self.model.train()
        name = f"{self._title} {epoch + 1}/{self._settings.epochs}"
        task = progress.add_task(name, total=len(self._stream) * self._settings.batch_size, note="")
        started = time.monotonic()
        seen: list[dict[str, float]] = []
        waiting: list[dict[str, Tensor]] = []
        for step, batch in enumerate(self.loader):
            waiting.append(self.step(batch))
            if len(waiting) == LOOK_EVERY or step + 1 == len(self._stream):
                seen.extend(self._look(waiting, epoch, step))
                progress.update(task, advance=len(waiting) * self._settings.batch_size, note=_written(seen[-1]))
                waiting.clear()
        rate = len(self._stream) * self._settings.batch_size / (time.monotonic() - started)
        embeddings = embed_split(
            self.model,
            self._store,
            self._parameters.eval.validation,
            self._accelerator,
            self._parameters.eval.batch_size,
            self._settings.workers,
        )
        rsum = retrieval(self.model, embeddings, self._store, self._parameters.eval.validation)["RSUM"]
        mean = {part: float(np.mean([losses[part] for losses in seen])) for part in seen[0]}
        progress.update(task, note=f"{_written(mean)} · validation RSUM {rsum:.1f}")
        temperatures = {name: module().item() for name, module in self.model.temperatures.named_children()}
        return Epoch(
            epoch=epoch,
            loss=mean,
            temperatures=temperatures,
            learning_rate=self._schedule.get_last_lr()[0],
            validation_rsum=rsum,
            samples_per_second=rate,
            wait=0.0,
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimiser step; return the loss's parts and total, still on the device."""
        batch = batch.to(self._accelerator.device)
        embeddings = self._wrapped(batch.images, batch.tokens)
        total, parts = objective(embeddings, self._teachers(batch), batch.samples, self.model, self._loss)
        self._optimizer.zero_grad()
        self._accelerator.backward(total)
        self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self._settings.clip_norm)
        self._optimizer.step()
        self._schedule.step()
        self.model.temperatures.clamp_()
        return {name: value.detach() for name, value in {**parts, "total": total}.items()}

    def _teachers(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        return self._join(batch) if self._loss.alpha or self._loss.beta else None

    def _look(self, waiting: list[dict[str, Tensor]], epoch: int, last_step: int) -> Iterator[dict[str, float]]:
        """Fetch the losses of the latest steps from the device, and stop at one that is not finite."""
        first = last_step - len(waiting) + 1
        for step, losses in enumerate(waiting, first):
            values = {name: float(value) for name, value in losses.items()}
            if not np.isfinite(list(values.values())).all():
                raise TrainingError(
                    f"The loss is not finite at step {step + 1} of epoch {epoch + 1}: {_written(values)}. "
                    f"{self._last_good()} Lower train.learning_rate, or look at the data of that step."
                )
            yield values

    def _last_good(self) -> str:
        if not self.last.exists():
            return "No epoch had finished, so there is no checkpoint."
        return f"The last good checkpoint is {self.last} (epoch {read_record(self.last)['epoch'] + 1})."

    def _save(self, figures: Epoch) -> None:
        earlier = [epoch.validation_rsum for epoch in self.history[:-1]]
        record = {
            "epoch": figures.epoch,
            "validation_rsum": figures.validation_rsum,
            "parameters": as_dict(replace(self._parameters, loss=self._loss)),
        }
        if figures.validation_rsum > max(earlier, default=-1.0):
            save_checkpoint(self.best, self.model, record)
        history = [asdict(epoch) for epoch in self.history]
        record |= {"history": history, "schedule": _plain(self._schedule.state_dict())}
        save_checkpoint(self.last, self.model, record, self._optimizer)


def _stream(store: Store, settings: Train, join: Join) -> PairStream:
    usable_samples, usable_captions = join.usable
    return PairStream(
        store,
        "train",
        batch_size=settings.batch_size,
        captions=settings.captions,
        shuffle_shards=settings.shuffle_shards,
        seed=settings.seed,
        usable_samples=usable_samples,
        usable_captions=usable_captions,
    )


def _loader(
    store: Store, model: AlignedModel, stream: PairStream, join: Join, settings: Train, accelerator: Accelerator
) -> DataLoader[Batch]:
    return DataLoader(
        PairBatches(store, model.student, join.on_host, settings.cache_gib),
        batch_sampler=stream,
        num_workers=settings.workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_interrupts_to_the_parent,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=settings.workers > 0,
    )


def _seed(seed: int, part: int) -> int:
    """Return a number that torch and numpy take as a seed, for one part of a run (0: the start, then the epochs)."""
    return int(np.random.SeedSequence((seed, part)).generate_state(1)[0])


def _as_it_is(batch: Any) -> Any:
    return batch


def _optimizer(model: nn.Module, settings: Train) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (norms, biases, temperatures) do not decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _schedule(optimizer: torch.optim.Optimizer, settings: Train, steps_per_epoch: int) -> LRScheduler:
    """Linear warm-up, then a cosine from the learning rate to the final one, by steps."""
    steps = settings.epochs * steps_per_epoch
    warmup = max(1, round(settings.warmup * steps))
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup), eta_min=settings.final_learning_rate)
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without what JSON cannot hold (bound methods, which a new scheduler has anyway)."""
    kept = {name: value for name, value in state.items() if isinstance(value, int | float | bool | list | None)}
    if "_schedulers" in kept:
        kept["_schedulers"] = [_plain(inner) for inner in state["_schedulers"]]
    return kept


def _live(folder: Path) -> Live:
    try:
        return Live(str(folder), report=None, save_dvc_exp=False, dvcyaml=None)
    except SCMError as error:
        raise TrainingError(
            f"dvclive cannot work in this git repository: {error}. Make a first commit, or train outside of it."
        ) from None


def _log(live: Live, figures: Epoch) -> None:
    for part, value in figures.loss.items():
        live.log_metric(f"loss/{part}", value)
    for name, value in figures.temperatures.items():
        live.log_metric(f"temperature/{name}", value)
    live.log_metric("validation/RSUM", figures.validation_rsum)
    live.log_metric("samples_per_second", figures.samples_per_second)
    live.next_step()


def _written(losses: dict[str, float]) -> str:
    return " · ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "total" or len(losses) > 2)
