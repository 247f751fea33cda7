"""Symmetry operations as files write them: ``'-y, x-y, z+1/3'``, and the groups they make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import RejectError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GRID = 24 * 25 * 7
"""Translations are kept as multiples of 1/4200: twelfths, eighths, and those of supercells."""
_TERM = re.compile(
    r"([+-]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+(?:\.\d*)?|\.\d+))?)?\*?([xyzabc])?", re.ASCII
)
_MOST = 192 * 8


@dataclass(frozen=True, eq=False)
class Operations:
    """G operations ``f' = W f + w`` of a space group in some setting, the identity among them."""

    rotations: IntArray  #: (G, 3, 3)
    grid: IntArray  #: (G, 3) translations in units of 1/GRID, in [0, GRID)
    reversal: IntArray  #: (G,) 1, or −1 with time reversal

    @property
    def translations(self) -> FloatArray:
        """(G, 3) translations as fractions."""
        return self.grid / GRID

    def __len__(self) -> int:
        return len(self.rotations)

    def keys(self) -> frozenset[tuple[int, ...]]:
        """The operations themselves, for comparison."""
        return frozenset(map(tuple, _rows(self.rotations, self.grid).tolist()))


def _rows(rotations: IntArray, grid: IntArray) -> IntArray:
    return np.concatenate([rotations.reshape(len(rotations), 9), grid], axis=1)


@lru_cache(maxsize=20_000)
def parse_operation(text: str) -> tuple[IntArray, IntArray, int]:
    """(3, 3) W, (3,) w in units of 1/GRID, and time reversal, of one operation as text.

    Raises
    ------
    RejectError
        When it is none.
    """
    parts = [part.strip().lower() for part in re.sub(r"\s+", "", text).strip("'\"").split(",")]
    reversal = 1
    if len(parts) == 4 and parts[3] in ("+1", "1", "-1"):
        reversal = int(parts[3])
        parts = parts[:3]
    if len(parts) != 3 or len(text) > 200:
        raise _bad(text)
    rotation, shift = np.zeros((3, 3), dtype=np.int64), np.zeros(3, dtype=np.int64)
    for row, part in enumerate(parts):
        place, total = 0, Fraction(0)
        while place < len(part):
            term = _TERM.match(part, place)
            if term is None or term.end() == place or not (term[2] or term[4]):
                raise _bad(text)
            if place and not term[1]:
                raise _bad(text)
            divisor = Fraction(term[3] or 1)
            if not divisor:
                raise _bad(text)
            size = Fraction(term[2] or 1) / divisor
            size = -size if term[1] == "-" else size
            if term[4]:
                if size.denominator != 1:
                    raise _bad(text)
                rotation[row, "xyzabc".index(term[4]) % 3] += int(size)
            else:
                total += size
            place = term.end()
        shift[row] = _on_grid(float(total), text)
    if abs(round(float(np.linalg.det(rotation)))) != 1:
        raise _bad(text)
    return rotation, shift % GRID, reversal


def _on_grid(value: float, text: str) -> int:
    """A translation in units of 1/GRID; decimals such as 0.333 or .6667 mean the nearest
    twenty-fourth."""
    exact = value * 24
    if abs(exact - round(exact)) < 0.024:
        return round(exact) * (GRID // 24)
    scaled = value * GRID
    if abs(scaled - round(scaled)) > 0.05:
        raise _bad(text)
    return round(scaled)


def _bad(text: str) -> RejectError:
    return RejectError("a symmetry operation cannot be read", repr(text[:60]))


@lru_cache(maxsize=256)
def group_of(texts: tuple[str, ...], centrings: tuple[str, ...] = ()) -> Operations:
    """The group that a list of operations is, each once, the identity first.

    Parameters
    ----------
    texts
        Operations.
    centrings
        Translations to combine each with, as magnetic CIF lists them.

    Raises
    ------
    RejectError
        When an operation cannot be read, or they form no group.
    """
    if len(texts) * max(1, len(centrings)) > _MOST:
        raise RejectError("more symmetry operations than any group has", str(len(texts)))
    ops = [parse_operation(text) for text in texts]
    if centrings:
        shifts = [parse_operation(text) for text in centrings]
        ops = [(w, (t + s) % GRID, r * q) for w, t, r in ops for _, s, q in shifts]
    seen: dict[tuple[int, ...], tuple[IntArray, IntArray, int]] = {}
    for w, t, r in ops:
        seen.setdefault((*w.ravel().tolist(), *t.tolist()), (w, t, r))
    identity = (1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    if identity not in seen:
        raise RejectError("the symmetry operations lack x,y,z")
    ordered = [seen.pop(identity), *seen.values()]
    made = Operations(
        np.array([w for w, _, _ in ordered]),
        np.array([t for _, t, _ in ordered]),
        np.array([r for _, _, r in ordered]),
    )
    _check_closed(made)
    return made


def from_setting(rotations: IntArray, translations24: IntArray) -> Operations:
    """Operations of the table of settings."""
    shifts = translations24 * (GRID // 24)
    return Operations(rotations, shifts, np.ones(len(rotations), dtype=np.int64))


def _check_closed(ops: Operations) -> None:
    """
    Raises
    ------
    RejectError
        When a product of two operations is not among them.
    """
    count = len(ops)
    if count == 1:
        return
    # a random vector of integers tells the operations apart
    weights = np.random.default_rng(0).integers(1, 2**40, 12)
    known = np.sort(_rows(ops.rotations, ops.grid) @ weights)
    for k in range(count):
        turned = ops.rotations[k] @ ops.rotations
        moved = (ops.grid @ ops.rotations[k].T + ops.grid[k]) % GRID
        products = np.sort(_rows(turned, moved) @ weights)
        if not np.array_equal(products, known):
            raise RejectError(
                "the symmetry operations form no group",
                f"products of operation {k + 1} with others are not listed",
            )
