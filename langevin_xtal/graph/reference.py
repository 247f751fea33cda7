"""The multigraph as it is specified: plain loops, no tricks. Every builder must equal it."""

from __future__ import annotations

import itertools

import numpy as np

from langevin_xtal.graph.contract import (
    MARGIN,
    MAX_NEAR,
    CrystalArrays,
    FloatArray,
    GraphSettings,
    IntArray,
    SymmetryMultigraph,
    too_many_near,
)
from langevin_xtal.symmetry.sites import IDENTICAL, orbit

Image = tuple[float, int, int, tuple[int, int, int], FloatArray]
"""Distance, target site, operation, shift, vector."""


def build(crystals: CrystalArrays, settings: GraphSettings) -> SymmetryMultigraph:
    """The multigraph of a batch of crystals."""
    crystals.check()
    rows: list[tuple[int, int, int, tuple[int, int, int], FloatArray, bool]] = []
    reach: list[float] = []
    multiplicity: list[int] = []
    for b in range(len(crystals)):
        sites = range(crystals.site_start[b], crystals.site_start[b + 1])
        atoms = _distinct_images(crystals, b)
        multiplicity += [sum(1 for j, _, _ in atoms if j == i) for i in sites]
        for i in sites:
            near, site_reach = _neighbours(crystals, b, i, atoms, settings)
            far = _missing_pairs(crystals, b, i, atoms, near, settings)
            edges = [(i, j, op, n, v, False) for _, j, op, n, v in near]
            edges += [(i, j, op, n, v, True) for _, j, op, n, v in far]
            rows += sorted(edges, key=lambda row: row[1:4])
            reach.append(site_reach)
    source = np.array([row[0] for row in rows], dtype=np.int64)
    target = np.array([row[1] for row in rows], dtype=np.int64)
    vec = np.array([row[4] for row in rows], dtype=float).reshape(-1, 3)
    return SymmetryMultigraph(
        edge_index=np.stack([source, target]),
        edge_op=np.array([row[2] for row in rows], dtype=np.int64),
        edge_shift=np.array([row[3] for row in rows], dtype=np.int64).reshape(-1, 3),
        edge_vec=vec,
        edge_dist=np.linalg.norm(vec, axis=1),
        edge_is_self_image=crystals.orbit[source] == crystals.orbit[target],
        edge_is_long_range=np.array([row[5] for row in rows], dtype=bool),
        edge_start=np.searchsorted(source, np.arange(len(crystals.frac) + 1)),
        site_reach=np.array(reach),
        multiplicity=np.array(multiplicity, dtype=np.int64),
    )


def _distinct_images(crystals: CrystalArrays, b: int) -> list[tuple[int, int, FloatArray]]:
    """(site, operation, W x + w) of every atom of the cell."""
    rotations, translations = crystals.operations(b)
    atoms = []
    for j in range(crystals.site_start[b], crystals.site_start[b + 1]):
        images, ops = orbit(crystals.frac[j], rotations, translations, crystals.lattice[b])
        atoms += [(j, int(op), image) for op, image in zip(ops, images, strict=True)]
    return atoms


def _images_within(
    crystals: CrystalArrays,
    b: int,
    i: int,
    atoms: list[tuple[int, int, FloatArray]],
    radius: float,
    coincidence: float,
) -> list[Image]:
    """All images of ``atoms`` within ``radius`` of site ``i``, nearest first."""
    lattice = crystals.lattice[b]
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    bound = np.ceil(radius / heights).astype(int)
    found: list[Image] = []
    for j, op, image in atoms:
        delta = image - crystals.frac[i]
        base = -np.rint(delta).astype(np.int64)
        for step in itertools.product(*(range(-m - 1, m + 2) for m in bound)):
            shift = base + np.array(step)
            vec = (delta + shift) @ lattice
            distance = float(np.linalg.norm(vec))
            own = crystals.orbit[j] == crystals.orbit[i]
            if distance >= radius or (own and distance < coincidence):
                continue
            n = (int(shift[0]), int(shift[1]), int(shift[2]))
            found.append((distance, j, op, n, vec))
    return sorted(found, key=lambda image: image[0])


def _shell_ends(images: list[Image]) -> IntArray:
    """Indices one past the end of each shell, of images sorted by distance."""
    distances = np.array([image[0] for image in images])
    return np.append(np.flatnonzero(np.diff(distances) > IDENTICAL) + 1, len(images))


def _check_near(
    crystals: CrystalArrays, b: int, atoms: list[tuple[int, int, FloatArray]], radius: float
) -> None:
    """Refuse a search of this radius that may meet more than ``MAX_NEAR`` images."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(crystals.lattice[b]), axis=0)
    # heights are often simple fractions of the radius: rounding must not decide
    near = len(atoms) * float(np.prod(np.floor(2.0 * radius / heights + 1e-9) + 1.0))
    if not near <= MAX_NEAR:
        raise too_many_near(b, radius, near)


def _neighbours(
    crystals: CrystalArrays,
    b: int,
    i: int,
    atoms: list[tuple[int, int, FloatArray]],
    settings: GraphSettings,
) -> tuple[list[Image], float]:
    """Rule 2 of the contract: the neighbours of site ``i`` and its reach."""
    radius = settings.cutoff
    while True:
        _check_near(crystals, b, atoms, radius)
        images = _images_within(crystals, b, i, atoms, radius, settings.coincidence)
        ends = _shell_ends(images)[:-1] if images else np.array([], dtype=np.int64)
        # the last shell may be incomplete, so only the ones before it are certain
        inside = sum(1 for image in images if image[0] < settings.cutoff - MARGIN)
        if inside > settings.k_max:
            if len(ends):
                fitting = ends[ends <= settings.k_max]
                count = int(fitting[-1] if len(fitting) else ends[0])
                return images[:count], min(images[count][0], settings.cutoff)
        elif inside >= settings.k_min:
            return images[:inside], settings.cutoff
        elif len(ends) and ends[-1] >= settings.k_min:
            count = int(ends[ends >= settings.k_min][0])
            return images[:count], max(images[count][0], settings.cutoff)
        radius *= 1.3


def _missing_pairs(
    crystals: CrystalArrays,
    b: int,
    i: int,
    atoms: list[tuple[int, int, FloatArray]],
    near: list[Image],
    settings: GraphSettings,
) -> list[Image]:
    """Rule 3: nearest shells of the orbits that have no image among the neighbours."""
    if not settings.all_pairs:
        return []
    orbit_of = crystals.orbit
    missing = {int(orbit_of[j]) for j, _, _ in atoms} - {int(orbit_of[im[1]]) for im in near}
    far: list[Image] = []
    for label in sorted(missing):
        own = [atom for atom in atoms if orbit_of[atom[0]] == label]
        radius = settings.cutoff
        while True:
            _check_near(crystals, b, atoms, radius)
            images = _images_within(crystals, b, i, own, radius, settings.coincidence)
            shell = images[: int(_shell_ends(images)[0])] if images else []
            if shell and shell[-1][0] + IDENTICAL < radius:  # nothing unseen can belong to it
                far += shell
                break
            radius *= 1.3
    return far
