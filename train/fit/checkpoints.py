"""The checkpoints of one training: what to go on from, the best weights, and those that a rule keeps.

`last.safetensors` is written after each epoch, every `train.save_every` steps and on a stop; frozen parameters are not
in it, since they are loaded from where they came. `best.safetensors` holds all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import frozen_digests, load_checkpoint, read_record, save_checkpoint
from stores import TrainingError, TrainParameters
from stores.parameters import as_dict
from train.fit.epoch import Epoch, EpochProgress


class Checkpoints:
    """Reads and writes a training's checkpoints in the folder `run`."""

    def __init__(
        self,
        run: Path,
        parameters: TrainParameters,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        frozen: Mapping[str, Tensor],
    ) -> None:
        """`frozen` are parameters that do not learn, by part and name, and are not needed to go on."""
        self.best, self.last = run / "best.safetensors", run / "last.safetensors"
        self._run, self._keep_every = run, parameters.train.keep_every
        self._parameters = as_dict(parameters)
        self._modules, self._optimizer = modules, optimizer
        self._left_out, self._frozen = frozen.keys(), frozen_digests(modules, frozen)

    def load(self) -> tuple[list[Epoch], EpochProgress]:
        """Load the last state if there is one; return the epochs behind it and what is done of the next.

        Raises:
            CheckpointError: it is damaged, or of another model.
        """
        if not self.last.exists():
            return [], EpochProgress()
        record = load_checkpoint(self.last, self._modules, self._optimizer)
        return [Epoch(**epoch) for epoch in record["history"]], EpochProgress(**record["done"])

    def save(self, history: Sequence[Epoch], done: EpochProgress) -> None:
        """Write everything to go on from."""
        record = {
            "history": [asdict(epoch) for epoch in history],
            "done": asdict(done),
            "parameters": self._parameters,
            "frozen": self._frozen,
        }
        save_checkpoint(self.last, self._modules, record, self._optimizer, self._left_out)

    def keep(self, history: Sequence[Epoch]) -> None:
        """Keep the weights of the last epoch of `history` if they are the best, or a rule says so.

        Raises:
            TrainingError: no RSUM tells how good they are.
        """
        figures = history[-1]
        if math.isnan(figures.validation_rsum):
            advice = "No query of that split has a partner that is there: choose one with images and their captions."
            raise TrainingError("RSUM", where="eval.validation", found="nan", expected="a number", advice=advice)
        record = {
            "epoch": figures.epoch,
            "validation_rsum": figures.validation_rsum,
            "temperatures": figures.temperatures,
            "parameters": self._parameters,
        }
        if figures.validation_rsum > max((epoch.validation_rsum for epoch in history[:-1]), default=-1.0):
            save_checkpoint(self.best, self._modules, record)
        if self._keep_every and (figures.epoch + 1) % self._keep_every == 0:
            save_checkpoint(self._run / f"epoch-{figures.epoch + 1:03}.safetensors", self._modules, record)

    def last_good(self) -> str:
        """Say, as a sentence, what there is to go back to."""
        if not self.last.exists():
            return "No checkpoint had been written."
        record = read_record(self.last)
        within = f", step {record['done']['step']} of the next" if record["done"]["step"] else ""
        return f"The last good checkpoint is {self.last} (epoch {len(record['history'])}{within})."
