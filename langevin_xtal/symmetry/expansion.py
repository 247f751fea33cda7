"""From the sites of an asymmetric unit to the atoms of its cell, for all sites at once.

What :func:`~langevin_xtal.symmetry.snap_site` and :func:`~langevin_xtal.symmetry.orbit` do one
site at a time, to the last bit: a site far from any special position is left to a few products
over all operations, and which images coincide follows from the operations that leave the site in
place, by the group's multiplication table. Sites for which distances do not decide clearly go the
long way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.sites import (
    IDENTICAL,
    fixed_projector,
    group_inverse,
    orbit,
    snap_site,
    wrap,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EXACT = 1e-6
"""Images that are one atom are this near to each other when nothing but rounding is left [Å]."""

CLEAR = 10 * IDENTICAL
"""Images further apart than this are different atoms whatever the shape of the cell [Å]."""


@dataclass(frozen=True, eq=False)
class GroupTable:
    """What expansion needs of the operations of a group."""

    turn: FloatArray  #: (3, 3 G) the matrices W side by side: ``point @ turn`` are all W f
    translations: FloatArray  #: (G, 3)
    inverse: FloatArray  #: (G, 3, 3) group inverses of W − I
    fixed: FloatArray  #: (G, 3, 3) projectors onto the vectors W leaves fixed
    product: IntArray  #: (G, G) operation g h is number ``product[g, h]``
    generators: IntArray  #: (K,) operations whose products are the group

    def images(self, points: FloatArray) -> FloatArray:
        """(A, G, 3) images ``W f + w`` of points (A, 3), not wrapped."""
        return (points @ self.turn).reshape(len(points), -1, 3) + self.translations


@cache
def group_table(number: int) -> GroupTable:
    """The table of one group."""
    group = SpaceGroup(number)
    product = _products(group)
    return GroupTable(
        turn=np.concatenate(list(np.swapaxes(group.rotations, 1, 2)), axis=1).astype(float),
        translations=group.translations,
        inverse=group_inverse(group.rotations),
        fixed=fixed_projector(group.rotations),
        product=product,
        generators=_generators(product),
    )


def _products(group: SpaceGroup) -> IntArray:
    """(G, G) number of operation g h."""
    w, t = group.rotations, group.translations24
    turned = w[:, None] @ w[None]
    moved = (np.einsum("gij,hj->ghi", w, t) + t[:, None]) % 24
    place = np.concatenate([3 ** np.arange(9), 3**9 * 24 ** np.arange(3)])
    codes = np.concatenate([w.reshape(-1, 9) + 1, t], axis=1) @ place
    wanted = np.concatenate([turned.reshape(*turned.shape[:2], 9) + 1, moved], axis=2) @ place
    order = np.argsort(codes)
    return order[np.searchsorted(codes[order], wanted)]


def _generators(product: IntArray) -> IntArray:
    """Operations, each outside the group that those before it generate, until that is all."""
    chosen: list[int] = []
    reached = np.zeros(len(product), dtype=bool)
    reached[0] = True
    while not reached.all():
        chosen.append(int(np.argmin(reached)))
        while True:
            grown = reached.copy()
            grown[product[np.flatnonzero(reached)][:, chosen]] = True
            if (grown == reached).all():
                break
            reached = grown
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Expanded:
    """The atoms of one cell: A sites, N atoms, site by site."""

    sites: FloatArray  #: (A, 3) in [0, 1), exactly on their special positions
    frac: FloatArray  #: (N, 3) in [0, 1)
    multiplicity: IntArray  #: (A,) atoms of each site
    is_exact: bool  #: the atoms and the cell were seen to have the group, up to rounding

    @property
    def atom_site(self) -> IntArray:
        """(N,) site of each atom."""
        return np.repeat(np.arange(len(self.multiplicity)), self.multiplicity)

    @property
    def first(self) -> IntArray:
        """(A,) first atom of each site."""
        return np.cumsum(self.multiplicity) - self.multiplicity


def expand_sites(
    group: SpaceGroup, frac: FloatArray, lattice: FloatArray, radius: FloatArray
) -> Expanded:
    """Place sites on the special positions they are near, and list their images.

    Parameters
    ----------
    frac
        (A, 3) fractional coordinates, finite.
    lattice
        (3, 3) rows [Å], finite.
    radius
        (A,) how far each site may be moved [Å].
    """
    table = group_table(group.number)
    sites = _placed(group, table, frac, lattice, radius)
    images = table.images(sites)
    length = _from_site(images, sites, lattice)
    clear = _clear(length)
    atoms, exact = [], bool(clear.all()) and _keeps_metric(group, lattice)
    for k in range(len(sites)):
        if not clear[k]:
            found, _ = orbit(sites[k], group.rotations, group.translations, lattice)
            atoms.append(wrap(found))
            continue
        kept, lowest = _distinct(table, length[k])
        own = wrap(images[k, kept])
        atoms.append(own)
        if exact:
            partner = np.searchsorted(kept, lowest[table.product[table.generators][:, kept]])
            exact = _maps_onto(table, own, partner, lattice)
    return Expanded(
        sites=sites,
        frac=np.concatenate(atoms),
        multiplicity=np.array([len(own) for own in atoms], dtype=np.int64),
        is_exact=exact,
    )


def orbits(
    group: SpaceGroup, frac: FloatArray, lattice: FloatArray
) -> tuple[FloatArray, IntArray]:
    """All different images of sites in one cell, site by site.

    Parameters
    ----------
    frac
        (A, 3) fractional coordinates, as exactly on special positions as they are to be.
    lattice
        (3, 3) conventional cell, rows [Å].

    Returns
    -------
    tuple
        (N, 3) images ``W f + w``, not wrapped, and (N,) the site of each.
    """
    table = group_table(group.number)
    images = table.images(frac)
    length = _from_site(images, frac, lattice)
    clear = _clear(length)
    atoms = [
        images[k, _distinct(table, length[k])[0]]
        if clear[k]
        else orbit(frac[k], group.rotations, group.translations, lattice)[0]
        for k in range(len(frac))
    ]
    counts = [len(own) for own in atoms]
    return np.concatenate([np.zeros((0, 3)), *atoms]), np.repeat(np.arange(len(atoms)), counts)


def _clear(length: FloatArray) -> NDArray[np.bool_]:
    """(A,) sites none of whose images (A, G) is at a distance [Å] that leaves a doubt."""
    return np.asarray(((length < EXACT) | (length > CLEAR)).all(axis=1))


def _distinct(table: GroupTable, length: FloatArray) -> tuple[IntArray, IntArray]:
    """Operations that give different images of a clear site: the first of every coset.

    Also (G,) the first of each operation's coset. ``length`` (G,) is how far each operation moves
    the site [Å].
    """
    stays = np.flatnonzero(length < EXACT)
    lowest = table.product[:, stays].min(axis=1)
    return np.flatnonzero(lowest == np.arange(len(lowest))), lowest


def _placed(
    group: SpaceGroup,
    table: GroupTable,
    frac: FloatArray,
    lattice: FloatArray,
    radius: FloatArray,
) -> FloatArray:
    """(A, 3) sites on the special positions within their radius, wrapped."""
    u = table.images(frac) - frac[:, None]
    u -= np.rint(u)
    length = _lengths(u, lattice)
    screw = _lengths(np.einsum("hij,ahj->ahi", table.fixed, u), lattice)
    away = _lengths(np.einsum("hij,ahj->ahi", table.inverse, u), lattice)
    near = (away <= radius[:, None]) & (screw < IDENTICAL) & (length > IDENTICAL)
    moved = np.empty_like(frac)
    for k in range(len(frac)):
        if near[k].any():
            moved[k] = snap_site(
                frac[k], group.rotations, group.translations, lattice, float(radius[k])
            )
        else:
            # nothing to enter: the mean of the images on the site only removes rounding
            moved[k] = frac[k] + u[k, length[k] < IDENTICAL].mean(axis=0)
    return wrap(moved)


def _from_site(images: FloatArray, sites: FloatArray, lattice: FloatArray) -> FloatArray:
    """(A, H) distances [Å] from each site to its images (A, H, 3)."""
    gap = images - sites[:, None]
    gap -= np.rint(gap)
    return _lengths(gap, lattice)


def _lengths(frac: FloatArray, lattice: FloatArray) -> FloatArray:
    """Lengths [Å] of fractional vectors, any shape."""
    length: FloatArray = np.linalg.norm(frac @ lattice, axis=-1)
    return length


def _keeps_metric(group: SpaceGroup, lattice: FloatArray) -> bool:
    """Whether the group's generators keep the cell's metric, to ``EXACT`` of its largest entry."""
    metric = lattice @ lattice.T
    w = group.rotations[group_table(group.number).generators].astype(float)
    turned = np.swapaxes(w, 1, 2) @ metric @ w
    return bool(np.abs(turned - metric).max(initial=0.0) <= EXACT * metric.max())


def _maps_onto(
    table: GroupTable, atoms: FloatArray, partner: IntArray, lattice: FloatArray
) -> bool:
    """Whether every generator moves each atom (M, 3) onto its partner (K, M), all different."""
    if (np.sort(partner, axis=1) != np.arange(len(atoms))).any():
        return False
    images = table.images(atoms)[:, table.generators].swapaxes(0, 1)
    gap = images - atoms[partner]
    gap -= np.rint(gap)
    return bool((_lengths(gap, lattice) <= EXACT).all())
