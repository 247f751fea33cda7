"""Validity of structures and compositions by the rules of CDVAE (Xie et al., ICLR 2022).

SMACT's rules themselves are in :mod:`langevin_xtal.screen.filters`, which searches use too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.screen.filters import composition_fault, describe

__all__ = [
    "MIN_DISTANCE",
    "MIN_VOLUME",
    "composition_fault",
    "composition_valid",
    "compositions_valid",
    "describe",
    "structure_valid",
]

BoolArray = NDArray[np.bool_]

MIN_DISTANCE = 0.5
"""Shortest distance between atoms [Å]: CDVAE's ``structure_validity``."""

MIN_VOLUME = 0.1
"""Smallest volume of a cell [Å³]: CDVAE's ``structure_validity``."""


def structure_valid(min_distance: ArrayLike, volume: ArrayLike) -> BoolArray:
    """(B,) whether atoms keep :data:`MIN_DISTANCE` and cells have :data:`MIN_VOLUME`.

    Parameters
    ----------
    min_distance
        (B,) shortest distance between atoms [Å]; infinite where there is one atom.
    volume
        (B,) of the cells [Å³]. NaN in either is not valid.
    """
    distances, volumes = np.asarray(min_distance, float), np.asarray(volume, float)
    return np.asarray((distances >= MIN_DISTANCE) & (volumes >= MIN_VOLUME))


def composition_valid(formula: str) -> bool:
    """Whether SMACT's rules allow a composition, see :func:`composition_fault`."""
    return not composition_fault(formula)


def compositions_valid(formulas: Sequence[str]) -> tuple[BoolArray, dict[str, str]]:
    """(B,) :func:`composition_valid` of each formula, and the reason for each that is not.

    Raises
    ------
    MissingPackageError
        When smact is not installed.
    """
    faults = {formula: composition_fault(formula) for formula in formulas}
    valid = np.array([not faults[formula] for formula in formulas], dtype=bool)
    return valid, {formula: fault for formula, fault in faults.items() if fault}
