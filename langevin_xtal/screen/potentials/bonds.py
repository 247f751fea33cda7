"""Bonds and angles of a crystal for a network that passes messages, one of each kind.

In an invariant network, atoms that operations of the crystal take to each other have the same
features, and so have bonds and angles. Only one of each orbit is computed here, with the number
that it stands for: a primitive cell in Pnma has an eighth of the messages, in Fm-3m a forty-eighth
where no atom is on a special position. Nothing is neglected.

A directed bond e leads from atom i to the image n of atom j. An operation x' = W x + w that takes
atom i to atom p(i), W x_i + w = x_p(i) + t_i, takes e to the bond from p(i) to the image
W n + t_j - t_i of p(j): whole numbers all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SAME_LENGTH = 1e-3
"""Bonds of one orbit differ less in length [Å], or the operations are not the crystal's."""
_SELF = 1e-8
"""An atom is no neighbour of itself at this distance [Å]."""


@dataclass(frozen=True, eq=False)
class Operations:
    """Operations of a crystal's group, translations of the lattice left out."""

    rotations: IntArray  #: (G, 3, 3) W, of fractional coordinates
    translations: FloatArray  #: (G, 3) w
    images: IntArray  #: (G, N) p, the atom that an atom is taken to

    @classmethod
    def identity(cls, count: int) -> Operations:
        """The identity alone, of ``count`` atoms."""
        one = np.eye(3, dtype=np.int64)[None]
        return cls(one, np.zeros((1, 3)), np.arange(count, dtype=np.int64)[None])

    def __deepcopy__(self, memo: object) -> Operations:
        return self  # never changed, but copied with every copy of atoms

    def mean_vectors(self, vectors: FloatArray, lattice: FloatArray) -> FloatArray:
        """(N, 3) Cartesian vectors of atoms, averaged over the operations."""
        turned = np.einsum("gab,nb->gna", self.rotations, vectors @ np.linalg.inv(lattice))
        total = np.zeros_like(vectors)
        np.add.at(total, self.images, turned)
        return total @ lattice / len(self.rotations)

    def mean_tensor(self, tensor: FloatArray, lattice: FloatArray) -> FloatArray:
        """(3, 3) Cartesian tensor, averaged over the operations."""
        turns = np.linalg.inv(lattice) @ self.rotations.transpose(0, 2, 1) @ lattice  # r' = r turn
        return np.asarray((turns.transpose(0, 2, 1) @ tensor @ turns).mean(axis=0))


@dataclass(frozen=True, eq=False)
class Bonds:
    """What a network computes of a crystal.

    A atoms, U bonds, M messages from bonds to atoms, S short bonds, P messages from angles to
    short bonds; F directed bonds are those whose vectors are needed.
    """

    atoms: IntArray  #: (A,) an atom of each orbit
    share: IntArray  #: (A,) atoms in the orbit
    ends: IntArray  #: (F, 2) atoms i and j of the cell
    image: IntArray  #: (F, 3) of atom j
    of_bond: IntArray  #: (U,) into F
    to: IntArray  #: (M,) into A: where the message goes
    by: IntArray  #: (M,) into A: the atom at the other end
    along: IntArray  #: (M,) into U
    times: IntArray  #: (M,) how often the atom gets this message
    short: IntArray  #: (S,) into U
    apex: IntArray  #: (P,) into A: where the two bonds meet
    bond: IntArray  #: (P,) into S: where the message goes
    other: IntArray  #: (P,) into S: the angle's other bond
    sides: IntArray  #: (P, 2) into F: both bonds from the apex
    angle_times: IntArray  #: (P,) how often the bond gets this message

    def vectors(self, lattice: FloatArray, frac: FloatArray) -> FloatArray:
        """(F, 3) from atom i to the image of atom j [Å]."""
        start, end = self.ends.T
        return np.asarray((frac[end] + self.image - frac[start]) @ lattice)


class BondFinder:
    """Finds the bonds of a crystal while its atoms and its cell move.

    Parameters
    ----------
    cutoff, angle_cutoff
        Length of the longest bond, and of the longest in an angle [Å].
    operations
        Of the crystal. They are not used for a geometry that does not have them.
    """

    def __init__(
        self, cutoff: float, angle_cutoff: float, operations: Operations | None = None
    ) -> None:
        self.cutoff, self.angle_cutoff, self.operations = cutoff, angle_cutoff, operations
        self._last: _Found | None = None

    def bonds(self, lattice: FloatArray, frac: FloatArray) -> tuple[Bonds, Operations]:
        """Bonds of a geometry, and the operations by which they are counted.

        Raises
        ------
        ValueError
            For an atom without neighbours.
        """
        edges = _edges(lattice, frac, self.cutoff)
        alone = len(frac) - len(np.unique(edges.ends[:, 0]))
        if alone:
            raise ValueError(f"{alone} atoms have no other within {self.cutoff:g} Å")
        short = edges.length < self.angle_cutoff
        if self._last is None or not self._last.holds(edges, short):
            self._last = self._new(edges, short, frac)
        return self._last.bonds, self._last.operations

    def _new(self, edges: _Edges, short: BoolArray, frac: FloatArray) -> _Found:
        operations = self.operations
        moved = None if operations is None else edges.moved(operations, frac)
        if operations is None or moved is None:
            operations = Operations.identity(len(frac))
            moved = np.arange(len(edges.code))[None]
        first = moved.min(axis=0)
        bonds = _counted(edges, moved, first, short[first], operations)
        return _Found(edges.code, short, first, bonds, operations)


@dataclass(frozen=True, eq=False)
class _Edges:
    """Directed bonds, sorted by their codes."""

    ends: IntArray  # (E, 2)
    image: IntArray  # (E, 3)
    length: FloatArray  # (E,)
    code: IntArray  # (E,) a number for ends and image
    count: int  # of atoms
    reach: int  # images lie within -reach to reach

    def find(self, ends: IntArray, image: IntArray) -> IntArray | None:
        """(…,) places of bonds with these ends (…, 2) and images (…, 3); None where one lacks."""
        if np.abs(image).max() > self.reach:
            return None
        code = _codes(ends, image, self.count, self.reach)
        place = np.minimum(np.searchsorted(self.code, code), len(self.code) - 1)
        return place if np.array_equal(self.code[place], code) else None

    def moved(self, operations: Operations, frac: FloatArray) -> IntArray | None:
        """(G, E) the bond each bond is taken to; None where these are no operations of it."""
        turned = frac @ operations.rotations.transpose(0, 2, 1) + operations.translations[:, None]
        shift = np.rint(turned - frac[operations.images]).astype(np.int64)  # (G, N, 3)
        start, end = self.ends.T
        image = self.image @ operations.rotations.transpose(0, 2, 1)
        place = self.find(operations.images[:, self.ends], image + shift[:, end] - shift[:, start])
        if place is None or np.abs(self.length[place] - self.length).max() > SAME_LENGTH:
            return None
        return place


def _edges(lattice: FloatArray, frac: FloatArray, cutoff: float) -> _Edges:
    from pymatgen.optimization.neighbors import find_points_in_spheres

    places = np.ascontiguousarray(frac @ lattice)
    start, end, image, length = find_points_in_spheres(
        places,
        places,
        r=float(cutoff),
        pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(lattice, dtype=float),
        tol=_SELF,
    )
    other = (start != end) | (length > _SELF)
    ends = np.stack([start, end], axis=1)[other].astype(np.int64)
    image = np.rint(image[other]).astype(np.int64)
    reach = int(np.abs(image).max(initial=0)) + 1
    code = _codes(ends, image, len(frac), reach)
    order = np.argsort(code)
    return _Edges(ends[order], image[order], length[other][order], code[order], len(frac), reach)


def _codes(ends: IntArray, image: IntArray, count: int, reach: int) -> IntArray:
    """A number for each bond, the larger the later in the order of ends and images."""
    base = 2 * reach + 1
    code = ends[..., 0] * count + ends[..., 1]
    for k in range(3):
        code = code * base + image[..., k] + reach
    return np.asarray(code)


@dataclass(frozen=True, eq=False)
class _Found:
    """Bonds that hold as long as no bond is longer or shorter than a cutoff that was not."""

    code: IntArray
    short: BoolArray
    first: IntArray  # (E,) first bond of the orbit
    bonds: Bonds
    operations: Operations

    def holds(self, edges: _Edges, short: BoolArray) -> bool:
        if not (np.array_equal(self.code, edges.code) and np.array_equal(self.short, short)):
            return False
        return bool(np.abs(edges.length - edges.length[self.first]).max() < SAME_LENGTH)


def _counted(
    edges: _Edges, moved: IntArray, first: IntArray, short: BoolArray, operations: Operations
) -> Bonds:
    """One bond of each orbit, and the messages to one atom and one bond of each orbit."""
    back = edges.find(edges.ends[:, ::-1], -edges.image)
    assert back is not None  # both directions are within the cutoff
    atoms, atom_of, share = _kinds(operations.images.min(axis=0))
    bonds, bond_of, _ = _kinds(np.minimum(first, first[back]))
    # messages to the first atom of each orbit, equal ones together
    start, end = edges.ends.T
    own = np.flatnonzero(np.isin(start, atoms))
    _, place, times = np.unique(first[own], return_index=True, return_counts=True)
    message = own[place]
    # angles at both ends of the first bond of each orbit
    sides = np.unique(np.concatenate([bonds, back[bonds]]))
    pairs = _pairs(sides[short[sides]], start, short)
    total = len(edges.code)
    label = np.full(len(pairs), np.iinfo(np.int64).max)
    for to in moved:
        np.minimum(label, to[pairs[:, 0]] * total + to[pairs[:, 1]], out=label)
    _, place, angle_times = np.unique(label, return_index=True, return_counts=True)
    pairs = pairs[place]
    needed, local = np.unique(np.concatenate([bonds, pairs.ravel()]), return_inverse=True)
    near, of_pair = np.unique(bond_of[pairs], return_inverse=True)
    of_pair = of_pair.reshape(-1, 2)
    return Bonds(
        atoms=atoms,
        share=share,
        ends=edges.ends[needed],
        image=edges.image[needed],
        of_bond=local[: len(bonds)],
        to=atom_of[start[message]],
        by=atom_of[end[message]],
        along=bond_of[message],
        times=times,
        short=near,
        apex=atom_of[start[pairs[:, 0]]],
        bond=of_pair[:, 0],
        other=of_pair[:, 1],
        sides=local[len(bonds) :].reshape(-1, 2),
        angle_times=angle_times,
    )


def _kinds(first: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """The first of each orbit, the orbit of each, and how many each orbit has."""
    found, orbit, count = np.unique(first, return_inverse=True, return_counts=True)
    return found, orbit.reshape(-1), count


def _pairs(sides: IntArray, start: IntArray, short: BoolArray) -> IntArray:
    """(P, 2) a bond of ``sides`` and another short bond from the same atom."""
    candidates = np.flatnonzero(short)  # sorted by the atom they start from
    low = np.searchsorted(start[candidates], start[sides], side="left")
    high = np.searchsorted(start[candidates], start[sides], side="right")
    count = high - low
    of = np.repeat(np.arange(len(sides)), count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    pairs = np.stack([sides[of], candidates[low[of] + step]], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]
