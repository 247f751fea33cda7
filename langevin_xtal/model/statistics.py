"""What sampling must know of the training data besides the weights: counts, sizes, shapes.

Shipped with every checkpoint as small tables, computed from the training split only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import InputError
from langevin_xtal.symmetry.groups import CRYSTAL_SYSTEMS, SpaceGroup

MAX_SITES = 8
"""Site counts per element are tabulated from 1 to this."""

ELEMENTS = 119
SMOOTHING = 5.0
"""Pseudo-counts of the crystal system (or of everything) in each group's table."""

FloatArray = NDArray[np.float64]

_TABLES: dict[str, tuple[tuple[int, ...], float, float]] = {  # shape, smallest, largest value
    "sites_by_group": ((231, MAX_SITES), 0.0, 1.001),
    "sites_by_element": ((ELEMENTS, MAX_SITES), 0.0, 1.001),
    "sites": ((MAX_SITES,), 1e-12, 1.001),
    "group_weight": ((231,), 0.0, 1.001),
    "site_multiplicity": ((231,), 0.999, 192.1),
    "shape": ((231, 3), -3.0, 3.0),
    "atomic_volume": ((ELEMENTS,), 1.0, 1000.0),
}


@dataclass(frozen=True)
class Statistics:
    """Tables indexed by space-group number (row 0 unused) and atomic number."""

    sites_by_group: FloatArray  #: (231, MAX_SITES) probability of n sites of one element
    sites_by_element: FloatArray  #: (119, MAX_SITES) the same, by element
    sites: FloatArray  #: (MAX_SITES,) the same, over everything
    group_weight: FloatArray  #: (231,) share of the training crystals
    site_multiplicity: FloatArray  #: (231,) geometric mean multiplicity of a site
    shape: FloatArray  #: (231, 3) mean of log(a, b, c / V^(1/3))
    atomic_volume: FloatArray  #: (119,) volume per atom of each element [Å^3]

    def __post_init__(self) -> None:
        for name, (shape, low, high) in _TABLES.items():
            table = getattr(self, name)
            if table.shape != shape or not ((table >= low) & (table <= high)).all():
                raise InputError(
                    f"the table {name!r} must have shape {shape} and values from {low} to {high}"
                )
        for name in ("sites_by_group", "sites_by_element", "sites"):
            if not np.allclose(getattr(self, name).sum(-1), 1.0, atol=1e-3):
                raise InputError(f"the probabilities of {name!r} do not add up to 1")

    @classmethod
    def of(
        cls,
        group: NDArray[np.int64],
        lattice: FloatArray,
        site_start: NDArray[np.int64],
        numbers: NDArray[np.int64],
        multiplicity: NDArray[np.int64],
    ) -> Statistics:
        """Count B crystals with A sites; arguments as in a packed dataset."""
        crystal = np.repeat(np.arange(len(group)), np.diff(site_start))
        site_group = group[crystal]
        volume = np.abs(np.linalg.det(lattice))
        counts = np.zeros((231, MAX_SITES))
        by_element = np.zeros((ELEMENTS, MAX_SITES))
        pair, n = np.unique(crystal * ELEMENTS + numbers, return_counts=True)
        n = np.minimum(n, MAX_SITES) - 1
        np.add.at(counts, (group[pair // ELEMENTS], n), 1.0)
        np.add.at(by_element, (pair % ELEMENTS, n), 1.0)
        everything = (counts.sum(0) + 1e-3) / (counts.sum() + MAX_SITES * 1e-3)
        system = _by_system(counts)
        system = (system + SMOOTHING * everything) / (system.sum(1, keepdims=True) + SMOOTHING)
        by_group = (counts + SMOOTHING * system) / (counts.sum(1, keepdims=True) + SMOOTHING)
        of_element = by_element + SMOOTHING * everything
        lengths = np.linalg.norm(lattice, axis=2)
        return cls(
            sites_by_group=by_group,
            sites_by_element=of_element / of_element.sum(1, keepdims=True),
            sites=everything,
            group_weight=np.bincount(group, minlength=231) / len(group),
            site_multiplicity=_multiplicity(site_group, multiplicity),
            shape=_smoothed_mean(group, np.log(lengths / np.cbrt(volume)[:, None])),
            atomic_volume=_atomic_volumes(crystal, numbers, multiplicity, volume),
        )

    def to_tensors(self) -> dict[str, FloatArray]:
        """Field name to array, for a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def site_count_probabilities(self, group: int, atomic_number: int) -> FloatArray:
        """(MAX_SITES,) probability of 1, 2, … sites of an element in a group.

        P(n | group) P(n | element) / P(n), normalised: group and element taken as independent
        given n.
        """
        p = self.sites_by_group[group] * self.sites_by_element[atomic_number] / self.sites
        return p / p.sum()


def _systems() -> NDArray[np.int64]:
    """(231,) index of the crystal system of each group."""
    index = np.zeros(231, dtype=np.int64)
    for k, (_, first, last) in enumerate(CRYSTAL_SYSTEMS):
        index[first : last + 1] = k
    return index


def _by_system(counts: FloatArray) -> FloatArray:
    """(231, …) counts of each group's whole crystal system."""
    system = _systems()
    total = np.zeros((len(CRYSTAL_SYSTEMS), *counts.shape[1:]))
    np.add.at(total, system[1:], counts[1:])
    return total[system]


def _smoothed_mean(group: NDArray[np.int64], values: FloatArray) -> FloatArray:
    """(231, …) mean by group, drawn to the mean of its crystal system where data are few."""
    total = np.zeros((231, *values.shape[1:]))
    np.add.at(total, group, values)
    count = np.bincount(group, minlength=231).astype(float).reshape(-1, *[1] * (values.ndim - 1))
    system = _by_system(total) / np.maximum(_by_system(count), 1.0)
    return (total + SMOOTHING * system) / (count + SMOOTHING)


def _multiplicity(site_group: NDArray[np.int64], multiplicity: NDArray[np.int64]) -> FloatArray:
    order = np.array([1] + [SpaceGroup(n).order for n in range(1, 231)], dtype=float)
    share = _smoothed_mean(site_group, np.log(multiplicity / order[site_group]))
    return np.maximum(order * np.exp(share), 1.0)


def _atomic_volumes(
    crystal: NDArray[np.int64],
    numbers: NDArray[np.int64],
    multiplicity: NDArray[np.int64],
    volume: FloatArray,
) -> FloatArray:
    """Ridge fit of cell volumes by a sum over atoms; unseen elements get the overall mean."""
    amounts = np.zeros((len(volume), ELEMENTS))
    np.add.at(amounts, (crystal, numbers), multiplicity)
    atoms = amounts.sum(1)
    x, y = amounts / atoms[:, None], volume / atoms
    mean = float(y.mean())
    normal = x.T @ x + np.eye(ELEMENTS)
    fitted = mean + np.linalg.solve(normal, x.T @ (y - mean))
    return np.clip(fitted, 3.0, None)
