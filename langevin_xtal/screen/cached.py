"""Work on many cells in parallel: each different cell once, results kept as they come."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.errors import LangevinXtalWarning
from langevin_xtal.parallel import parallel_map

FloatArray = NDArray[np.float64]

if TYPE_CHECKING:
    pass

Outcome = TypeVar("Outcome")


Progress = Callable[[int, int], None]


SAVE_EVERY = 20


SAVE_SECONDS = 10.0


PER_WORKER = 8
"""Cells that pay for starting one more process, which takes about ten seconds."""


class ResultCache(Protocol):
    """Where relaxations are kept: 1-D arrays of float64 by (kind, key)."""

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, FloatArray]:
        """The arrays of those ``keys`` that are there."""
        ...

    def put(self, kind: str, values: Mapping[str, FloatArray]) -> None:
        """Keep arrays."""
        ...


def each_once(
    work: Callable[[Cell], Outcome],
    cells: Sequence[Cell],
    *,
    kind: str,
    pack: Callable[[Outcome], FloatArray],
    unpack: Callable[[FloatArray, Cell], Outcome],
    cache: ResultCache | None,
    workers: int | None,
    progress: Progress | None,
    per_worker: int = PER_WORKER,
) -> list[Outcome]:
    """``work`` of each different cell in parallel, kept as it comes.

    Parameters
    ----------
    work
        Picklable; should not raise for anything a cell can cause.
    kind
        What the results depend on besides the cell: potential, version, options.
    pack, unpack
        A result as a 1-D array, and back, given the cell it belongs to.
    cache, workers, progress
        As in :func:`relax`.
    per_worker
        Cells that pay for starting one more process.
    """
    keys = [cell_key(cell) for cell in cells]
    of = dict(zip(keys, cells, strict=True))
    stored = cache.get(kind, list(of)) if cache is not None else {}
    done = _unpacked(stored, of, unpack)
    todo = [key for key in of if key not in done]
    report = progress or (lambda finished, planned: None)
    report(len(done), len(of))
    useful = useful_workers(len(todo), workers, per_worker)
    fresh: dict[str, FloatArray] = {}
    saved = time.monotonic()
    # two at a time save messages; one at a time share few cells evenly
    chunk = 2 if len(todo) >= 4 * useful else 1
    results = parallel_map(work, [of[key] for key in todo], workers=useful, chunk=chunk)
    try:
        for key, result in zip(todo, results, strict=True):
            done[key] = result
            fresh[key] = pack(result)
            report(len(done), len(of))
            if len(fresh) >= SAVE_EVERY or time.monotonic() - saved > SAVE_SECONDS:
                _save(cache, kind, fresh)
                saved = time.monotonic()
    finally:
        _save(cache, kind, fresh)
    return [done[key] for key in keys]


def _unpacked(
    stored: Mapping[str, FloatArray],
    of: Mapping[str, Cell],
    unpack: Callable[[FloatArray, Cell], Outcome],
) -> dict[str, Outcome]:
    """Results of a cache; damaged ones are reported, and missing."""
    done = {}
    for key, values in stored.items():
        try:
            done[key] = unpack(values, of[key])
        except (ValueError, IndexError, OverflowError):  # numpy's, of arrays of another length
            continue
    if len(done) < len(stored):
        warnings.warn(
            f"{len(stored) - len(done)} entries of the cache are damaged; they are computed again",
            LangevinXtalWarning,
            stacklevel=3,
        )
    return done


def useful_workers(count: int, workers: int | None, per_worker: int = PER_WORKER) -> int:
    """How many processes :func:`each_once` starts for so many cells; see there."""
    return max(1, min(workers or os.cpu_count() or 1, math.ceil(count / per_worker)))


def _save(cache: ResultCache | None, kind: str, fresh: dict[str, FloatArray]) -> None:
    if cache is not None and fresh:
        cache.put(kind, fresh)
    fresh.clear()
