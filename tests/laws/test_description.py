"""One description of a crystal, whichever origin, images and order it came with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry import SpaceGroup, orbit
from langevin_xtal.symmetry.description import EDGE, GRAIN, Description, describe, smallest_labels
from langevin_xtal.symmetry.wyckoff import (
    locate,
    polar_directions,
    shift_vectors,
    table_start,
    wyckoff_positions,
)
from langevin_xtal.train.assignments import site_positions

ALL_GROUPS = range(1, 231)
CELL = 40.0 * np.eye(3)  # any cell: points are compared in fractions


@dataclass(frozen=True)
class Told:
    """A crystal as someone may write it down."""

    number: int
    positions: list[int]
    frac: np.ndarray
    kinds: list[int]

    @property
    def group(self) -> SpaceGroup:
        return SpaceGroup(self.number)

    def described(self) -> Description:
        return describe(self.number, self.positions, self.frac, self.kinds)

    def atoms(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) all atoms of the cell and (N,) their kinds."""
        return atoms_of(self.number, self.frac, self.kinds)

    def reordered(self, rng: np.random.Generator) -> Told:
        order = rng.permutation(len(self.frac))
        kinds = [self.kinds[k] for k in order]
        positions = [self.positions[k] for k in order]
        return Told(self.number, positions, self.frac[order], kinds)

    def translated(self, rng: np.random.Generator) -> Told:
        """Each site by a vector of the lattice."""
        return replace(self, frac=self.frac + rng.integers(-2, 3, self.frac.shape))

    def from_another_origin(self, rng: np.random.Generator) -> Told:
        """One that keeps the group: its positions are relabelled."""
        vectors, labels = shift_vectors(self.number)
        row = rng.integers(len(vectors))
        shift = vectors[row] + polar_directions(self.number) @ rng.uniform(-1, 1, 3)
        positions = labels[row][self.positions].tolist()
        return replace(self, positions=positions, frac=self.frac + shift)

    def by_other_images(self, rng: np.random.Generator) -> Told:
        w, t = self.group.rotations, self.group.translations
        h = rng.integers(len(w), size=len(self.frac))
        return replace(self, frac=np.einsum("aij,aj->ai", w[h], self.frac) + t[h])


def atoms_of(number: int, frac: np.ndarray, kinds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    group = SpaceGroup(number)
    images = [orbit(x, group.rotations, group.translations, CELL)[0] for x in frac]
    return np.concatenate(images), np.repeat(kinds, [len(i) for i in images])


def random_told(number: int, rng: np.random.Generator, sites: int) -> Told:
    """Sites of up to three elements on random Wyckoff positions."""
    table = wyckoff_positions(number)
    free = [w.index for w in table if w.freedom]
    positions: list[int] = []
    while len(positions) < sites:
        w = int(rng.integers(len(table)))
        if table[w].freedom == 0 and w in positions:
            if not free:
                break
            w = int(rng.choice(free))
        positions.append(w)
    points = [table[w].base + table[w].projector @ rng.uniform(-1, 1, 3) for w in positions]
    kinds = rng.integers(1, 4, len(positions))
    return Told(number, positions, np.array(points), kinds.tolist())


def assert_alike(one: Told, other: Told) -> None:
    """Descriptions differ by rounding, or by the grain where two images are that near."""
    a, b = one.described(), other.described()
    assert a.positions == b.positions
    assert [one.kinds[k] for k in a.order] == [other.kinds[k] for k in b.order]
    for x, y in zip(a.parameters, b.parameters, strict=True):
        assert x.shape == y.shape
        assert np.abs(x - y).max(initial=0.0) <= GRAIN + 1e-9


def assert_same_crystal(told: Told, description: Description) -> None:
    """Atoms of the description are those of the crystal, seen from another origin."""
    mine, mine_kinds = told.atoms()
    kinds = [told.kinds[k] for k in description.order]
    theirs, their_kinds = atoms_of(told.number, description.frac, kinds)
    assert len(mine) == len(theirs)
    first = np.flatnonzero(mine_kinds == kinds[0])
    for start in mine[first]:
        moved = mine + (description.frac[0] - start)
        gap = moved[:, None] - theirs[None]
        gap = np.abs(gap - np.rint(gap)).max(2) + (mine_kinds[:, None] != their_kinds[None])
        if (gap.min(1) < 1e-6).all():
            return
    raise AssertionError("no origin from which the two are the same")


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_order_lattice_and_origin_do_not_matter(number):
    for seed in range(2):
        rng = np.random.default_rng([number, seed])
        told = random_told(number, rng, 1 + seed * 2)
        other = told.reordered(rng).translated(rng).from_another_origin(rng)
        assert_alike(told, other)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_images_do_not_matter(number):
    for seed in range(4):
        rng = np.random.default_rng([number, seed, 1])
        told = random_told(number, rng, 1 + seed)
        other = told.by_other_images(rng).reordered(rng).from_another_origin(rng)
        assert_alike(told, other)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_the_description_is_the_same_crystal(number):
    rng = np.random.default_rng([number, 2])
    told = random_told(number, rng, 3)
    assert_same_crystal(told, told.described())


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_what_a_description_holds(number):
    rng = np.random.default_rng([number, 3])
    told = random_told(number, rng, 4)
    found = told.described()
    table = wyckoff_positions(number)
    assert sorted(found.order.tolist()) == list(range(len(told.frac)))
    kinds = [told.kinds[k] for k in found.order]
    keys = list(zip(kinds, found.positions, strict=True))
    assert keys == sorted(keys)
    for w, values, point in zip(found.positions, found.parameters, found.frac, strict=True):
        assert values.shape == (table[w].freedom,)
        assert ((values >= -EDGE) & (values < 1 - EDGE)).all()
        np.testing.assert_allclose(point[table[w].parameters], values, atol=1e-12)
        off = (np.eye(3) - table[w].projector) @ (point - table[w].base)
        np.testing.assert_allclose(off, 0, atol=1e-9)
    # of each kind and position, sites in the order of their parameters
    rounded = [np.rint(v / GRAIN).tolist() for v in found.parameters]
    assert sorted(zip(keys, rounded, strict=True)) == list(zip(keys, rounded, strict=True))


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_a_description_describes_itself(number):
    rng = np.random.default_rng([number, 4])
    told = random_told(number, rng, 3)
    found = told.described()
    kinds = [told.kinds[k] for k in found.order]
    assert_alike(told, Told(number, list(found.positions), found.frac, kinds))


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_smallest_labels_by_trying_all_origins(number):
    rng = np.random.default_rng([number, 5])
    told = random_told(number, rng, 4)
    labels, rows = smallest_labels(number, told.positions, told.kinds)
    every = shift_vectors(number)[1][:, told.positions]
    descriptions = [sorted(zip(told.kinds, row.tolist(), strict=True)) for row in every]
    smallest = min(descriptions)
    assert rows.tolist() == [k for k, d in enumerate(descriptions) if d == smallest]
    assert labels == tuple(every[rows[0]].tolist())


def reference_told() -> list[tuple[str, Told]]:
    data = reference_dataset()
    rows, found = site_positions(data), []
    for k in range(len(data)):
        own, number = data.sites_of(k), int(data.group[k])
        local = (rows[own] - table_start()[number - 1]).tolist()
        found.append(
            (str(data.id[k]), Told(number, local, data.frac[own], data.numbers[own].tolist()))
        )
    return found


def test_structure_types_told_otherwise():
    """Coordinates of published structures: simple fractions among them."""
    compared = 0
    for k, (_, told) in enumerate(reference_told()):
        rng = np.random.default_rng(k)
        other = told.reordered(rng).translated(rng).from_another_origin(rng)
        other = other.by_other_images(rng)
        assert_alike(told, other)
        assert_same_crystal(told, told.described())
        compared += 1
    assert compared > 90


def test_wurtzite_told_by_its_other_atoms():
    """The zinc and the sulphur atom stored may be of either layer."""
    told = dict(reference_told())["wurtzite"]
    assert told.number == 186
    for seed in range(5):
        assert_alike(told, told.by_other_images(np.random.default_rng(seed)))


def test_structures_of_one_type_are_told_alike():
    """A perovskite with either cation at the origin."""
    centred = np.array([[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0.5, 0]])
    told = []
    for frac in (centred, centred + 0.5):
        positions = [locate(221, x, CELL).index for x in frac]
        told.append((positions, describe(221, positions, frac, [1, 2, 3])))
    assert told[0][0] != told[1][0]
    assert told[0][1].positions == told[1][1].positions
    np.testing.assert_allclose(told[0][1].frac, told[1][1].frac, atol=1e-12)


@pytest.mark.parametrize("number", [2, 62, 166, 194, 225])
def test_sites_off_their_position_are_refused(number):
    table = wyckoff_positions(number)
    point = table[0].base + np.array([0.0111, 0.0173, 0.0231])
    with pytest.raises(SymmetryError, match="is not on position 0"):
        describe(number, [0], point[None], [1])
