"""Which device to compute on."""

from __future__ import annotations

import torch

from langevin_xtal.errors import InputError


def resolved_device(name: str) -> str:
    """``cpu`` or ``cuda``, from ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        For another name, or a GPU that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is not known; give auto, cpu or cuda")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("device cuda was asked for, but torch finds no CUDA device; give cpu")
    return "cuda" if there and name != "cpu" else "cpu"
