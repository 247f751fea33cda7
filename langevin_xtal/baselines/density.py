"""Charge densities: of superposed free atoms, from CHGCAR files, in slices, and atoms in them.

The density of a free atom is that of its X-ray form factor (four Gaussians and a constant, from
the International Tables C as gemmi has them), smeared by an isotropic displacement, which makes a
Gaussian of the constant.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DISPLACEMENT = 3.0
"""Isotropic displacement B = 8π²⟨u²⟩ of all atoms [Å^2]."""
CUTOFF = 5.0
"""Where the density of an atom ends [Å]."""


@cache
def _gaussians(number: int) -> tuple[FloatArray, FloatArray]:
    """Heights [e/Å^3] and exponents [Å^-2] of the Gaussians of an element."""
    import gemmi

    known = gemmi.Element(SYMBOLS[number]).it92
    if known is None:
        raise InputError(f"no form factor of {SYMBOLS[number]} is known, nor its density")
    charges = np.array([*known.a, known.c])
    exponents = 4 * np.pi**2 / (np.array([*known.b, 0.0]) + DISPLACEMENT)
    return charges * (exponents / np.pi) ** 1.5, exponents


def atom_density(number: int, distance: FloatArray) -> FloatArray:
    """Density of a free atom [e/Å^3] at distances of any shape [Å]."""
    heights, exponents = _gaussians(number)
    square = np.asarray(distance, dtype=float)[..., None] ** 2
    return np.asarray((heights * np.exp(-exponents * square)).sum(-1))


def images_within(cell: Cell, centre: FloatArray, radius: float) -> tuple[FloatArray, IntArray]:
    """(M, 3) places [Å] of all atoms nearer than ``radius`` to a point, (M,) their elements."""
    lattice, frac, numbers = cell
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    middle = centre @ np.linalg.inv(lattice)
    base = frac - np.rint(frac - middle)
    reach = np.ceil(radius / heights + 0.5).astype(int)
    shifts = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), -1)
    places = ((base[:, None] + shifts.reshape(-1, 3)) @ lattice).reshape(-1, 3)
    kinds = np.repeat(numbers, shifts[..., 0].size)
    near = np.linalg.norm(places - centre, axis=1) < radius
    return places[near], kinds[near]


def density_at(cell: Cell, points: FloatArray) -> FloatArray:
    """(M,) superposed density of free atoms [e/Å^3] at points (M, 3) [Å]."""
    centre = points.mean(axis=0)
    radius = float(np.linalg.norm(points - centre, axis=1).max()) + CUTOFF
    places, kinds = images_within(cell, centre, radius)
    density = np.zeros(len(points))
    for place, z in zip(places, kinds.tolist(), strict=True):
        distance = np.linalg.norm(points - place, axis=1)
        near = distance < CUTOFF
        density[near] += atom_density(z, distance[near])
    return density


def grid_density(cell: Cell, shape: tuple[int, int, int]) -> FloatArray:
    """Superposed density [e/Å^3] on a grid of the cell, as a CHGCAR has it; sums to Σ Z / V."""
    axes = [np.arange(n) / n for n in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) @ cell[0]
    return density_at(cell, points).reshape(shape)


def read_density(path: Path) -> tuple[FloatArray, FloatArray]:
    """(a, b, c) density [e/Å^3] and cell (3, 3) [Å] of a CHGCAR file.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    from pymatgen.io.vasp.outputs import Chgcar

    try:
        found = Chgcar.from_file(str(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no CHGCAR file that can be read ({reason})") from None
    volume = float(found.structure.volume)
    density = np.asarray(found.data["total"], dtype=float) / volume
    return density, np.array(found.structure.lattice.matrix)


def plane_slice(
    cell: Cell, centre: FloatArray, axes: FloatArray, width: float, pixels: int
) -> FloatArray:
    """(P, P) density on a square of a plane [e/Å^3].

    Parameters
    ----------
    centre
        (3,) of the square [Å].
    axes
        (2, 3) orthonormal; rows of the picture run along the first, columns along the second.
    width
        Of the square [Å].
    """
    along = pixel_places(width, pixels)
    places, kinds = images_within(cell, centre, width / np.sqrt(2) + CUTOFF)
    apart = places - centre
    inside = apart @ axes.T
    beside = np.abs(inside).max(axis=1, initial=0.0) < width / 2 + CUTOFF
    above = (apart**2).sum(1) - (inside**2).sum(1)
    near = beside & (above < CUTOFF**2)
    density = np.zeros((pixels, pixels))
    for z in np.unique(kinds[near]).tolist():
        own = near & (kinds == z)
        for height, exponent in zip(*_gaussians(z), strict=True):  # a product of its directions
            rows, columns = (
                np.exp(-exponent * (along - inside[own, k, None]) ** 2) for k in range(2)
            )
            density += (height * np.exp(-exponent * above[own])[:, None] * rows).T @ columns
    return density


def pixel_places(width: float, pixels: int) -> FloatArray:
    """(P,) coordinates of the pixels of a square [Å], 0 in its middle."""
    return np.asarray((np.arange(pixels) - (pixels - 1) / 2) * (width / pixels), dtype=float)


def random_plane(cell: Cell, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """A plane through three atoms: its centre (3,) [Å], on the first, and two axes (2, 3)."""
    lattice, frac, _ = cell
    first = frac[rng.integers(len(frac))] @ lattice
    places, _ = images_within(cell, first, 6.0)
    while len(places) < 4:  # a cell with an atom in 200 Å^3 or more
        places = np.concatenate([places, first + lattice])
    while True:
        pair = places[rng.choice(len(places), 2, replace=False)] - first
        normal = np.cross(*pair)
        if np.linalg.norm(normal) > 0.1 * np.prod(np.linalg.norm(pair, axis=1)) > 0:
            break
    one = pair[0] / np.linalg.norm(pair[0])
    normal /= np.linalg.norm(normal)
    return first, np.array([one, np.cross(normal, one)])


def atoms_in_slice(density: FloatArray, width: float, least: float) -> FloatArray:
    """(M, 2) places [Å] of the peaks of a slice (P, P), 0 in its middle; none on its edge.

    Parameters
    ----------
    least
        Density at a peak [in the units of the slice].
    """
    found = []
    pixels = len(density)
    for i, j in np.argwhere(_peaks(density, least, periodic=False)):
        if 0 < i < pixels - 1 and 0 < j < pixels - 1:
            found.append([i + _offset(density[i - 1 : i + 2, j]),
                          j + _offset(density[i, j - 1 : j + 2])])  # fmt: skip
    places = np.array(found).reshape(-1, 2)
    return (places - (pixels - 1) / 2) * (width / pixels)


def atoms_in_grid(density: FloatArray, least: float) -> FloatArray:
    """(M, 3) fractional places of the peaks in the slices of a cell (a, b, c)."""
    shape = np.array(density.shape)
    found = []
    for at in np.argwhere(_peaks(density, least, periodic=True)):
        place = at.astype(float)
        for axis in range(3):
            three = [density[tuple((at + step * np.eye(3, dtype=int)[axis]) % shape)]
                     for step in (-1, 0, 1)]  # fmt: skip
            place[axis] += _offset(np.array(three))
        found.append(place / shape)
    places = np.array(found).reshape(-1, 3)
    return places - np.floor(places)


def _peaks(density: FloatArray, least: float, *, periodic: bool) -> NDArray[np.bool_]:
    """Where no neighbour is higher; of equal neighbours the first alone."""
    from scipy.ndimage import label, maximum_filter

    mode = "wrap" if periodic else "nearest"
    highest = (density >= maximum_filter(density, 3, mode=mode) - 1e-12) & (density >= least)
    labels, count = label(highest, np.ones((3,) * density.ndim))
    peaks = np.zeros(density.shape, dtype=bool)
    for k in range(1, count + 1):
        peaks[tuple(np.argwhere(labels == k)[0])] = True
    return peaks


def _offset(three: FloatArray) -> float:
    """Where a Gaussian through three neighbours has its peak, from the middle one [pixels]."""
    before, middle, after = np.log(np.clip(three, 1e-12, None))
    bend = before - 2 * middle + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
