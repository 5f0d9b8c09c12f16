"""Which device and precision "auto" means on this machine."""

from __future__ import annotations

from typing import Final, Literal

import torch

from stores.errors import ParameterError
from stores.parameters import Precision

ComputePrecision = Literal["fp32", "bf16"]
"""What a model computes in."""


WITHOUT_FLOAT64: Final = ("mps",)
"""Kinds of devices that have no float64."""


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return what sums are taken in that should be exact: float64, or float32 on a device without."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the machine's accelerator, or the CPU where there is none."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason, advice = str(error).splitlines()[0], "Try auto or cpu."
        raise ParameterError(f"cannot be used ({reason})", where="device", found=name, advice=advice) from None
    return device


def use_device(name: str) -> torch.device:
    """Return the device called `name`, which is now what this process means where it names none.

    Libraries then name none: memory pinned for transfers, say, would else take room on the first GPU for every process.
    """
    device, accelerator = resolve_device(name), torch.accelerator.current_accelerator()
    if device.index is not None and accelerator is not None and device.type == accelerator.type:
        torch.accelerator.set_device_index(device.index)
    return device


def resolve_precision(precision: Precision, device: torch.device) -> ComputePrecision:
    """Return the precision that `precision` means on `device`; "auto" is bf16 where the hardware multiplies in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is always about the current one
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        return "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "fp32"
    return "fp32"
