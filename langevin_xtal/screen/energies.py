"""Energies of cells as they stand, without forces and stress where a potential can do without.

SevenNet-0 needs a third of the time so (0.040 s instead of 0.131 s for crystals of 10 atoms).
Batches of crystals gain nothing on a CPU (SevenNet-0, batches of 4 to 20: 3 to 13 % slower).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.ase import to_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.folding import fold
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.screen.cached import Progress, ResultCache, each_once
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import DEFAULT_OPTIONS, LARGEST, one_thread, unfit

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class PointEnergy:
    """Energy of a cell as it stands."""

    energy: float  #: [eV/atom], NaN exactly when there is a reason
    reason: str = ""  #: why it has none


def point_energy(cell: Cell, options: RelaxOptions = DEFAULT_OPTIONS) -> PointEnergy:
    """Energy of one P1 cell, in this process.

    Parameters
    ----------
    options
        Which potential, on which device; the least distance between atoms.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    potential = load_potential(options.potential, options.device)
    reason = unfit(cell, potential, options)
    if reason:
        return PointEnergy(math.nan, reason)
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms = to_atoms(cell)
            if potential.energy is not None:
                total = potential.energy(atoms)
            else:
                atoms.calc = potential.calculator()
                total = float(atoms.get_potential_energy())
    except Exception as error:  # potentials raise anything on strange cells
        return PointEnergy(math.nan, f"unexpected failure: {first_line(error)}")
    if not math.isfinite(total):
        return PointEnergy(math.nan, "the potential's energy is not finite")
    return PointEnergy(total / len(atoms))


def single_point(cell: Cell, options: RelaxOptions = DEFAULT_OPTIONS) -> float:
    """Energy per atom [eV] of :func:`point_energy`, NaN where it has none."""
    return point_energy(cell, options).energy


def point_energies(
    cells: Sequence[Cell],
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[PointEnergy]:
    """Energies of P1 cells in parallel, each once, computed in the primitive cell.

    Parameters
    ----------
    cache, workers, progress
        As in :func:`~langevin_xtal.screen.relax.relax`.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    version = load_potential(options.potential, options.device).version
    return each_once(
        partial(_folded, options=options),
        cells,
        kind=f"energy {version} {options.symprec!r} {options.min_distance!r} {options.device}",
        pack=_pack,
        unpack=_unpack,
        cache=cache,
        workers=workers,
        progress=progress,
    )


def _folded(cell: Cell, options: RelaxOptions) -> PointEnergy:
    return point_energy(fold(cell, options.symprec).primitive, options)


def _pack(result: PointEnergy) -> FloatArray:
    """The energy, and the reason as code points."""
    return np.array([result.energy, *(float(ord(letter)) for letter in result.reason)])


def _unpack(values: FloatArray, cell: Cell) -> PointEnergy:
    if len(values) < 1 or math.isnan(values[0]) != (len(values) > 1):
        raise ValueError("no energy")
    if len(values) == 1 and not abs(values[0]) < LARGEST:
        raise ValueError("an energy that is not finite")
    return PointEnergy(float(values[0]), "".join(chr(int(code)) for code in values[1:]))
