"""Symmetry that a crystal is found to have: the only module that calls spglib.

Where spglib finds nothing it raises, returns None or warns, by its version and by what is wrong
with the cell. Here :func:`symmetry_dataset` and :func:`standard_cell` return None for all of it,
and :func:`group_number` and :func:`group_numbers` 0.

A cell is lattice (3, 3) rows [Å], fractional coordinates (N, 3) and atomic numbers (N,).

>>> cell = np.eye(3) * 3.0, np.zeros((1, 3)), np.array([84])               # polonium
>>> group_numbers(cell)
{0.001: 221, 0.01: 221, 0.1: 221}
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.tolerances import SYMPRECS, USUAL

if TYPE_CHECKING:
    from spglib import SpglibDataset

_Cell = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def symmetry_dataset(cell: _Cell, symprec: float = USUAL) -> SpglibDataset | None:
    """Group, operations, orbits and standard cell that spglib finds within ``symprec`` [Å].

    None where it finds nothing, such as for atoms on top of each other.
    """
    import spglib

    found: SpglibDataset | None = _asked(spglib.get_symmetry_dataset, cell, symprec=symprec)
    return found


def group_number(cell: _Cell, symprec: float = USUAL) -> int:
    """Space-group number within ``symprec`` [Å], 0 where none is found."""
    found = symmetry_dataset(cell, symprec)
    return 0 if found is None else int(found.number)


def group_numbers(cell: _Cell, symprecs: Iterable[float] = SYMPRECS) -> dict[float, int]:
    """Space-group number by tolerance [Å], 0 where none is found."""
    return {symprec: group_number(cell, symprec) for symprec in symprecs}


def standard_cell(
    cell: _Cell, symprec: float = USUAL, *, primitive: bool, idealise: bool
) -> _Cell | None:
    """The standardised cell of a crystal, or None where no symmetry is found.

    Parameters
    ----------
    symprec
        Tolerance [Å].
    primitive
        The primitive cell; otherwise the conventional one.
    idealise
        Place atoms exactly where the symmetry has them, in the standard orientation. Otherwise
        positions and orientation stay as they are.
    """
    import spglib

    found = _asked(
        spglib.standardize_cell,
        cell,
        to_primitive=primitive,
        no_idealize=not idealise,
        symprec=symprec,
    )
    if found is None:
        return None
    lattice, frac, numbers = found
    return (
        np.asarray(lattice, dtype=np.float64),
        np.asarray(frac, dtype=np.float64),
        np.asarray(numbers, dtype=np.int64),
    )


def niggli_lattice(lattice: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(3, 3) rows [Å] of the Niggli-reduced cell of a lattice, None where there is none."""
    import spglib

    found = _asked(spglib.niggli_reduce, lattice)
    return None if found is None else np.ascontiguousarray(found, dtype=np.float64)


def niggli_cell(
    lattice: NDArray[np.float64], frac: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows [Å] of the Niggli-reduced cell and coordinates (N, 3) from 0 to 1 in it.

    Where there is no reduced cell the lattice stays as it is.
    """
    found = niggli_lattice(lattice)
    rows = lattice if found is None else found
    reduced = frac @ lattice @ np.linalg.inv(rows)
    return rows, reduced - np.floor(reduced)


def spglib_version() -> str:
    """Of the spglib that is installed."""
    import spglib

    return str(spglib.__version__)


def _asked(function: Callable[..., Any], cell: _Cell | NDArray[np.float64], **options: Any) -> Any:
    """What a function of spglib returns for a cell or lattice; None where it raises."""
    if not all(np.isfinite(values).all() for values in cell):
        return None  # spglib would end the process (2.8: a segmentation fault)
    with _quiet():
        try:
            return function(cell, **options)
        except Exception:  # SpglibError since 2.7, and others for arrays that it cannot read
            return None


_LOCK = threading.Lock()
_ASKING: list[warnings.catch_warnings[None]] = []
"""One entry for each thread that is asking; the first holds the filters of before."""


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings in this block, which several threads may be in.

    ``catch_warnings`` alone would not do: of two threads the second to leave would bring back the
    filters of the first, which ignore everything.
    """
    with _LOCK:
        if not _ASKING:
            caught = warnings.catch_warnings()
            caught.__enter__()
            warnings.simplefilter("ignore")
        _ASKING.append(caught if not _ASKING else _ASKING[0])
    try:
        yield
    finally:
        with _LOCK:
            first = _ASKING.pop()
            if not _ASKING:
                first.__exit__(None, None, None)
