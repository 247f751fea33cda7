"""A random stream for every candidate: counter-based, so nothing depends on the batch.

Number ``c`` of stream ``key`` is ``mix(key + c · g)``: the SplitMix64 generator (Steele, Lea and
Flood, OOPSLA 2014) started at ``key`` and asked for its c-th output directly. 64-bit integers
wrap the same way on every device, so streams are the same on CPU and GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_PER_DRAW = 1 << 24
"""Numbers reserved for one draw of one candidate."""

FIRST_DRAW = 1 << 10
"""Draws before this one belong to the start of a chain."""


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64, any shape."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def stream_keys(seed: int, index: Tensor, attempt: Tensor) -> Tensor:
    """(B,) keys of candidates ``index`` (B,) of ``seed``, at attempt (B,)."""
    key = mix(torch.full_like(index, _signed(seed)) + _signed(_GOLDEN))
    for part in (index, attempt):
        key = mix(key + (part + 1) * _signed(_GOLDEN))  # the part-th output of stream ``key``
    return key


def chain_keys(keys: Tensor, chain: Tensor) -> Tensor:
    """(B,) streams of chains ``chain`` (B,) of candidates ``keys`` (B,): of chain 0 the same."""
    # the outputs of a stream before its first one, which no draw uses
    return torch.where(chain == 0, keys, mix(keys - chain * _signed(_GOLDEN)))


def uniforms(keys: Tensor, slots: Tensor, draw: int | Tensor) -> Tensor:
    """Numbers in (0, 1), float64.

    Parameters
    ----------
    keys
        (N,) key of each number's candidate.
    slots
        (N,) position of the number within its candidate's draw.
    draw
        Which draw, counted from 0; for all, or (N,).
    """
    counter = slots + draw * _PER_DRAW + 1
    bits = _shift(mix(keys + counter * _signed(_GOLDEN)), 11)
    return ((bits.double() + 0.5) * 2.0**-53).clamp(max=1.0 - 2.0**-53)


def normals(keys: Tensor, slots: Tensor, draw: int | Tensor) -> Tensor:
    """Standard normal numbers (N,), by Box and Muller; arguments as for :func:`uniforms`."""
    u = uniforms(keys, 2 * slots, draw)
    v = uniforms(keys, 2 * slots + 1, draw)
    return (-2.0 * u.log()).sqrt() * (2.0 * torch.pi * v).cos()


class CandidateStreams:
    """The streams of one batch: successive draws for its sites and crystals.

    Parameters
    ----------
    keys
        (B,) from :func:`stream_keys`.
    site_start
        (B + 1,) sites of each crystal.
    """

    def __init__(self, keys: Tensor, site_start: Tensor) -> None:
        counts = site_start.diff()
        crystal = torch.repeat_interleave(torch.arange(len(keys), device=keys.device), counts)
        place = torch.arange(len(crystal), device=keys.device) - site_start[:-1][crystal]
        three = torch.arange(3, device=keys.device)
        self._site_keys = keys[crystal].repeat_interleave(3)
        self._site_slots = (3 * place.unsqueeze(1) + three + 3).flatten()
        six = torch.arange(6, device=keys.device)
        self._keys = keys.repeat_interleave(6)
        self._slots = six.repeat(len(keys))
        self._draw = FIRST_DRAW

    def site_normals(self) -> Tensor:
        """(A, 3) standard normal."""
        self._draw += 1
        return normals(self._site_keys, self._site_slots, self._draw).view(-1, 3)

    def crystal_normals(self) -> Tensor:
        """(B, 6) standard normal."""
        self._draw += 1
        return normals(self._keys, self._slots, self._draw).view(-1, 6)
