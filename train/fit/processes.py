"""Training in several processes (torchrun, accelerate launch): who does what once, and embeddings of all processes.

In a single process all of this does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, broadcast_object_list
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from models.encoded import Encoded, tensors_of, with_tensors
from stores import ParameterError, TrainParameters
from stores.errors import CusaError
from stores.hardware import resolve_device, resolve_precision, use_device
from train.losses.comparison import Instances

T = TypeVar("T")
PATIENCE: Final = timedelta(days=7)
"""How long processes wait while the main one measures or writes."""


def make_accelerator(parameters: TrainParameters) -> Accelerator:
    """Return this process's device and precision, joined with the other processes that the launcher started.

    Raises:
        ParameterError: one device is named for several processes.
    """
    device = resolve_device(parameters.train.device)
    precision = resolve_precision(parameters.train.precision, device)
    # Buffers are shared where they are read: before measuring (`share_buffers`), not with every forward pass.
    apart = DistributedDataParallelKwargs(broadcast_buffers=False)
    mixed = "bf16" if precision == "bf16" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed, kwargs_handlers=[apart])
    if accelerator.num_processes > 1 and device.index is not None:
        raise ParameterError(
            f"train.device is {parameters.train.device!r}, one device for {accelerator.num_processes} processes. "
            f"Say cuda or auto: each process then takes its own."
        )
    if accelerator.num_processes == 1:
        use_device(parameters.train.device)
    return accelerator


def precision_of(accelerator: Accelerator) -> str:
    """Return what a model computes in: fp32 or bf16."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


class Processes:
    """What the processes of a training tell each other."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        # Flags travel on the host, so that asking never waits for the device.
        self._host = distributed.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None

    def alone(self, work: Callable[[], T]) -> T | None:
        """Let the main process alone do `work`, while the others wait; return its result there, None elsewhere.

        If it fails, every process ends: the main one with the error, the others without a word.
        """
        result: T | None = None
        failure: CusaError | OSError | None = None
        if self.is_main:
            try:
                result = work()
            except (CusaError, OSError) as error:
                failure = error
        if self.any(failure is not None):
            if failure is not None:
                raise failure
            sys.exit(CusaError.exit_code)
        return result

    def once(self, work: Callable[[], T]) -> T:
        """Let the main process alone do `work`, and give every process its (picklable) result."""
        result: T = broadcast_object_list([self.alone(work)])[0]  # every process has the main one's by now
        return result

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers: batch statistics differ, each process having seen its share."""
        broadcast(list(model.buffers()))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; all of them must ask."""
        if self._host is None:
            return flag
        flags = torch.tensor([int(flag)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self._host)
        return bool(flags.item())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        mean: Tensor = self._accelerator.reduce(values, reduction="mean")
        return mean

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the equally long tensors of all processes, one after another, without gradient."""
        whole: Tensor = self._accelerator.gather(tensor)
        return whole

    def columns(self, rows: Instances) -> Instances:
        """Return the rows of all processes, each with as many; the gradient flows back to the process it came from.

        Every process then compares its own rows with all columns, so that the mean over the processes of their
        losses is the loss of the whole batch.
        """
        if self.count == 1:
            return rows
        rows = rows._replace(encoded={modality: self._padded(items) for modality, items in rows.encoded.items()})
        tensors = tensors_of(rows)
        learning = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.requires_grad]
        gathered = iter(self._gather_learning(learning) if learning else [])
        return with_tensors(
            rows, [next(gathered) if any(t is one for one in learning) else self.gather(t) for t in tensors]
        )

    def _gather_learning(self, tensors: list[Tensor]) -> list[Tensor]:
        """Gather tensors with their gradients in one exchange: (n, numbers of a row) of each process."""
        flat = [tensor.flatten(1) for tensor in tensors]
        whole = torch.cat(all_gather(torch.cat(flat, dim=1)))  # type: ignore[no-untyped-call]
        pieces = torch.split(whole, [piece.shape[1] for piece in flat], dim=1)
        return [piece.reshape(-1, *tensor.shape[1:]) for piece, tensor in zip(pieces, tensors, strict=True)]

    def _padded(self, items: Encoded) -> Encoded:
        """Pad parts to the longest of all processes; where one masks some, all have masks."""
        if items.parts is None:
            return items
        length, masked = items.parts.shape[1], items.mask is not None
        sizes = torch.tensor([length, int(masked)])
        distributed.all_reduce(sizes, distributed.ReduceOp.MAX, group=self._host)
        return items.padded(int(sizes[0])).masked() if sizes[1] else items
