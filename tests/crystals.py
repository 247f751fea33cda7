"""Random crystals for the tests: any group, general and special sites, sensible cells."""

from __future__ import annotations

import numpy as np

from langevin_xtal.graph.contract import CrystalArrays
from langevin_xtal.symmetry import SpaceGroup, cell_directions, orbit, snap_site, wrap


def random_lattice(number: int, rng: np.random.Generator, volume: float) -> np.ndarray:
    """A cell of the group's lattice system with about this volume [Å^3], in a standard frame."""
    a, b, c = rng.uniform(0.8, 1.25, 3)
    system = SpaceGroup(number).crystal_system
    if system == "triclinic":
        cell = np.diag([a, b, c]) @ (np.eye(3) + np.tril(rng.uniform(-0.3, 0.3, (3, 3)), -1))
    elif system == "monoclinic":
        beta = np.radians(rng.uniform(92, 115))
        cell = np.array([[a, 0, 0], [0, b, 0], [c * np.cos(beta), 0, c * np.sin(beta)]])
    else:
        if system == "cubic":
            b = c = a
        elif system != "orthorhombic":
            b = a
        cell = np.diag([a, b, c]) @ cell_directions(number)
    return cell * np.cbrt(volume / np.linalg.det(cell))


def random_site(
    number: int, lattice: np.ndarray, rng: np.random.Generator, radius: float
) -> np.ndarray:
    """A point; snapped to a special position when one is within ``radius`` [Å]."""
    group = SpaceGroup(number)
    point = rng.uniform(0, 1, 3)
    if radius > 0:
        point = snap_site(point, group.rotations, group.translations, lattice, radius)
    return wrap(point)


def same_orbit(
    group: SpaceGroup, site: np.ndarray, other: np.ndarray, lattice: np.ndarray
) -> bool:
    """Whether two sites would put atoms in one place, or nearly: such an edge has no direction."""
    images = other @ np.swapaxes(group.rotations, 1, 2) + group.translations
    delta = images - site
    delta -= np.rint(delta)
    return bool((np.linalg.norm(delta @ lattice, axis=1) < 0.05).any())


def random_crystal(
    number: int, n_sites: int, seed: int, *, special: float = 0.7, volume: float | None = None
) -> CrystalArrays:
    """One crystal of a group; about ``special`` of its sites near special positions are on them.

    Without ``volume`` the cell gets 15 Å^3 per atom.
    """
    rng = np.random.default_rng([number, n_sites, seed])
    lattice = random_lattice(number, rng, 100.0)
    radius = [1.0 if rng.uniform() < special else 0.0 for _ in range(n_sites)]
    group = SpaceGroup(number)
    sites: list[np.ndarray] = []
    for r in radius:
        site = random_site(number, lattice, rng, r)
        while any(same_orbit(group, site, other, lattice) for other in sites):
            site = random_site(number, lattice, rng, 0.0)
        sites.append(site)
    frac = np.array(sites)
    if volume is None:
        atoms = sum(len(orbit(f, group.rotations, group.translations, lattice)[1]) for f in frac)
        volume = 15.0 * atoms
    lattice = lattice * np.cbrt(volume / np.linalg.det(lattice))
    return CrystalArrays.of_groups(lattice[None], frac, np.array([0, n_sites]), np.array([number]))


def merge(*crystals: CrystalArrays) -> CrystalArrays:
    """Several crystals of the shared operation table as one batch."""
    starts = np.cumsum([0] + [len(c.frac) for c in crystals])
    return CrystalArrays(
        lattice=np.concatenate([c.lattice for c in crystals]),
        frac=np.concatenate([c.frac for c in crystals]),
        site_start=starts,
        rotations=crystals[0].rotations,
        translations=crystals[0].translations,
        op_start=np.concatenate([c.op_start for c in crystals]),
        op_count=np.concatenate([c.op_count for c in crystals]),
        orbit=np.concatenate([c.orbit + s for c, s in zip(crystals, starts, strict=False)]),
    )


def expand_to_p1(crystal: CrystalArrays) -> tuple[CrystalArrays, np.ndarray, np.ndarray]:
    """Every atom of the cell as a site of its own, with only the identity.

    Returns the P1 crystal, (N,) the site of each atom, and (A,) the atom that is the stored
    representative of each site.
    """
    rotations, translations = crystal.operations(0)
    frac, site = [], []
    for j, point in enumerate(crystal.frac):
        images, _ = orbit(point, rotations, translations, crystal.lattice[0])
        frac.append(images)
        site += [j] * len(images)
    site_of_atom = np.array(site)
    p1 = CrystalArrays(
        lattice=crystal.lattice,
        frac=np.concatenate(frac),
        site_start=np.array([0, len(site)]),
        rotations=np.eye(3, dtype=np.int64)[None],
        translations=np.zeros((1, 3)),
        op_start=np.array([0]),
        op_count=np.array([1]),
        orbit=site_of_atom,
    )
    first = np.searchsorted(site_of_atom, np.arange(len(crystal.frac)))
    return p1, site_of_atom, first
