"""Many crystals as flat arrays: numpy's, or torch's on any device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = TypeVar("Array")


class CrystalBatch(Generic[Array]):
    """B crystals whose sites, A in all, follow each other; a base of dataclasses.

    Crystal ``b`` owns the rows ``site_start[b] : site_start[b + 1]`` of the arrays
    :attr:`PER_SITE`, and the row ``b`` of the arrays :attr:`PER_CRYSTAL`.
    """

    PER_SITE: ClassVar[tuple[str, ...]] = ("numbers", "frac")
    PER_CRYSTAL: ClassVar[tuple[str, ...]] = ()

    site_start: Array  #: (B + 1,) offsets of each crystal's sites, from 0
    numbers: Array  #: (A,) atomic numbers
    frac: Array  #: (A, 3) fractional coordinates

    def __len__(self) -> int:
        return len(self._start) - 1

    @property
    def _start(self) -> Any:
        return self.site_start

    def sites_of(self, index: int) -> slice:
        """The sites of crystal ``index``, as a slice of the per-site arrays."""
        return slice(int(self._start[index]), int(self._start[index + 1]))

    @property
    def site_counts(self) -> Array:
        """(B,) sites of each crystal."""
        counts: Array = self._start[1:] - self._start[:-1]
        return counts

    @property
    def site_crystal(self) -> Array:
        """(A,) crystal of each site."""
        crystals = _arange(self._start, len(self))
        found: Array = _repeat(crystals, self.site_counts, len(self.numbers))  # type: ignore[arg-type]
        return found

    def places(self, indices: ArrayLike) -> NDArray[np.int64]:
        """(C,) rows of the crystals at ``indices``: integers, or a (B,) boolean mask."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)  # an empty list arrives as float
        return np.arange(len(self))[chosen].reshape(-1)

    def picked(self, index: Any, sites: int | None = None) -> dict[str, Any]:
        """All arrays of the crystals ``index`` (C,), in that order.

        Parameters
        ----------
        sites
            How many sites they have. Where it is given, no tensor is waited for.
        """
        first = self._start[index]
        count = self._start[index + 1] - first
        ends = count.cumsum(0)
        total = sites if sites is not None else int(ends[-1]) if len(ends) else 0
        site = _arange(self._start, total) + _repeat(first - ends + count, count, total)
        return {
            "site_start": _library(ends).concatenate([self._start[:1] * 0, ends]),
            **{name: getattr(self, name)[site] for name in self.PER_SITE},
            **{name: getattr(self, name)[index] for name in self.PER_CRYSTAL},
        }

    @classmethod
    def joined(cls, parts: Sequence[CrystalBatch[Array]]) -> dict[str, Any]:
        """All arrays of one batch after the other, at least one."""
        concatenate = _library(parts[0]._start).concatenate
        offset, starts = 0, [parts[0]._start[:1] * 0]
        for part in parts:
            starts.append(part._start[1:] + offset)
            offset += len(part.numbers)  # type: ignore[arg-type]
        names = (*cls.PER_SITE, *cls.PER_CRYSTAL)
        arrays = {name: concatenate([getattr(part, name) for part in parts]) for name in names}
        return {"site_start": concatenate(starts), **arrays}


def _library(array: object) -> ModuleType:
    """numpy or torch, whichever the array is of; who has a tensor has loaded torch."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def _arange(like: Any, count: int) -> Any:
    """0, 1, … on the device of an array."""
    if isinstance(like, np.ndarray):
        return np.arange(count)
    return sys.modules["torch"].arange(count, device=like.device)


def _repeat(values: Any, counts: Any, total: int) -> Any:
    """Each value so many times, ``total`` in all."""
    if isinstance(values, np.ndarray):
        return np.repeat(values, counts)
    return values.repeat_interleave(counts, output_size=total)
