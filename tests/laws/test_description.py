"""One description of a crystal, whichever origin, basis, images and order it came with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry import SpaceGroup, lattice_coordinates, orbit
from langevin_xtal.symmetry.description import (
    EDGE,
    MOST_BASES,
    QUARTER,
    QUARTER_OFFSET,
    Description,
    describe,
    descriptions,
    represented,
    smallest_labels,
)
from langevin_xtal.symmetry.frames import frames, nearest_frame, reducing_turns
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.wyckoff import (
    locate,
    polar_directions,
    shift_vectors,
    table_start,
    wyckoff_positions,
)
from langevin_xtal.train.prior import site_positions
from tests.crystals import random_lattice

ALL_GROUPS = range(1, 231)
CELL = 40.0 * np.eye(3)  # any cell: points are compared in fractions
FEW = [
    1,
    2,
    5,
    8,
    9,
    12,
    14,
    15,
    19,
    31,
    43,
    47,
    58,
    62,
    79,
    88,
    122,
    146,
    166,
    186,
    205,
    216,
    227,
]


@dataclass(frozen=True)
class Crystal:
    """A crystal as someone may write it down."""

    number: int
    positions: list[int]
    frac: np.ndarray
    kinds: list[int]
    lattice: np.ndarray

    @property
    def group(self) -> SpaceGroup:
        return SpaceGroup(self.number)

    def described(self) -> Description:
        return describe(self.number, self.positions, self.frac, self.kinds, self.lattice)

    def atoms(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) all atoms of the cell and (N,) their kinds."""
        return atoms_of(self.number, self.frac, self.kinds)

    def reordered(self, rng: np.random.Generator) -> Crystal:
        order = rng.permutation(len(self.frac))
        kinds = [self.kinds[k] for k in order]
        positions = [self.positions[k] for k in order]
        return replace(self, positions=positions, frac=self.frac[order], kinds=kinds)

    def translated(self, rng: np.random.Generator) -> Crystal:
        """Each site by a vector of the lattice."""
        return replace(self, frac=self.frac + rng.integers(-2, 3, self.frac.shape))

    def from_another_origin(self, rng: np.random.Generator) -> Crystal:
        """One that keeps the group: its positions are relabelled."""
        vectors, labels = shift_vectors(self.number)
        row = rng.integers(len(vectors))
        shift = vectors[row] + polar_directions(self.number) @ rng.uniform(-1, 1, 3)
        positions = labels[row][self.positions].tolist()
        return replace(self, positions=positions, frac=self.frac + shift)

    def in_another_basis(self, rng: np.random.Generator, steps: int = 2) -> Crystal:
        """One that keeps the group, mirrored or not."""
        table, crystal = frames(self.number), self
        for m in rng.integers(len(table.basis), size=steps).tolist():
            crystal = replace(
                crystal,
                positions=table.renamed[m][crystal.positions].tolist(),
                frac=crystal.frac @ table.turn[m].T + table.origin[m],
                lattice=table.basis[m].T @ crystal.lattice,
            )
        return crystal

    def by_other_images(self, rng: np.random.Generator) -> Crystal:
        w, t = self.group.rotations, self.group.translations
        h = rng.integers(len(w), size=len(self.frac))
        return replace(self, frac=np.einsum("aij,aj->ai", w[h], self.frac) + t[h])

    def otherwise(self, rng: np.random.Generator) -> Crystal:
        """From another origin, in another basis, by other images, reordered."""
        crystal = self.from_another_origin(rng).in_another_basis(rng).by_other_images(rng)
        return crystal.translated(rng).reordered(rng)


def atoms_of(number: int, frac: np.ndarray, kinds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    group = SpaceGroup(number)
    images = [orbit(x, group.rotations, group.translations, CELL)[0] for x in frac]
    return np.concatenate(images), np.repeat(kinds, [len(i) for i in images])


def random_crystal(number: int, rng: np.random.Generator, sites: int) -> Crystal:
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
    lattice = random_lattice(number, rng, 200.0)
    return Crystal(number, positions, np.array(points), kinds.tolist(), lattice)


def cell_of(crystal: Crystal, found: Description) -> np.ndarray:
    return found.basis.T @ crystal.lattice


def assert_alike(one: Crystal, other: Crystal) -> None:
    """Descriptions differ by rounding."""
    a, b = one.described(), other.described()
    assert a.positions == b.positions
    assert [one.kinds[k] for k in a.order] == [other.kinds[k] for k in b.order]
    for x, y in zip(a.parameters, b.parameters, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    first, second = cell_of(one, a), cell_of(other, b)
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-6)


def assert_same_crystal(crystal: Crystal, found: Description) -> None:
    """Atoms of the description are those of the crystal, in its basis and from its origin."""
    mine, mine_kinds = crystal.atoms()
    mine = mine @ np.linalg.inv(found.basis).T
    kinds = [crystal.kinds[k] for k in found.order]
    theirs, their_kinds = atoms_of(crystal.number, found.frac, kinds)
    assert len(mine) == len(theirs)
    assert abs(np.linalg.det(found.basis)) == pytest.approx(1)
    for start in mine[np.flatnonzero(mine_kinds == kinds[0])]:
        moved = mine + (found.frac[0] - start)
        gap = moved[:, None] - theirs[None]
        gap = np.abs(gap - np.rint(gap)).max(2) + (mine_kinds[:, None] != their_kinds[None])
        if (gap.min(1) < 1e-6).all():
            return
    raise AssertionError("no origin from which the two are the same")


# changes of basis and origin


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_changes_keep_the_group(number):
    """Conjugation maps operations onto operations; positions are renamed one to one."""
    table, group = frames(number), SpaceGroup(number)
    own = {
        (r.tobytes(), *(t % 24))
        for r, t in zip(group.rotations, group.translations24, strict=True)
    }
    rng = np.random.default_rng(number)
    assert np.array_equal(table.basis[0], np.eye(3))
    assert np.array_equal(table.renamed[0], np.arange(len(wyckoff_positions(number))))
    for m in {0, *rng.integers(len(table.basis), size=12).tolist()}:
        turn, basis = table.turn[m], table.basis[m]
        assert np.array_equal(turn @ basis, np.eye(3))
        assert abs(round(float(np.linalg.det(basis)))) == 1
        shift = np.rint(24 * table.origin[m]).astype(np.int64)
        assert sorted(table.renamed[m]) == list(range(table.renamed.shape[1]))
        for r, t in zip(group.rotations, group.translations24, strict=True):
            image = np.ascontiguousarray(turn @ r @ basis)
            moved = (turn @ t + shift - image @ shift) % 24
            assert (image.tobytes(), *moved) in own
        # located one by one, by their site symmetry
        w = wyckoff_positions(number)[int(rng.integers(len(wyckoff_positions(number))))]
        point = w.base + w.projector @ np.array([0.0127, 0.0211, 0.0173])
        place = locate(number, turn @ point + table.origin[m], 50.0 * np.eye(3))
        assert place.index == table.renamed[m][w.index]


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_names_are_a_group_of_permutations(number):
    """Those of isometries of the lattice are among them."""
    names = {tuple(row) for row in frames(number).names.tolist()}
    rng = np.random.default_rng(number)
    every = sorted(names)
    for _ in range(40):
        one, other = (every[k] for k in rng.integers(len(every), size=2))
        assert tuple(one[w] for w in other) in names
    assert {tuple(row) for row in position_permutations(number).tolist()} <= names


def test_axes_that_may_be_exchanged():
    """Of Pmmm all, of Pnma none; and the inversion centres of P-1 are all alike."""
    assert len(frames(47).basis) == 6
    assert len(frames(62).basis) == 1
    assert len(frames(2).names) == 1344  # affine maps of the eight corners of a cube, modulo 2


@given(st.sampled_from([1, 2, 3, 5, 8, 9, 12, 14, 15]), st.integers(0, 10**6))
def test_reduction(number, seed):
    """No change that is listed makes the basis shorter, from however far away one comes."""
    rng = np.random.default_rng(seed)
    crystal = random_crystal(number, rng, 1).in_another_basis(rng, 4)
    table, lattice = frames(number), crystal.lattice
    for m in reducing_turns(number, lattice @ lattice.T):
        lattice = table.basis[m].T @ lattice
    sizes = [(np.linalg.norm(b.T @ lattice, axis=1) ** 2).sum() for b in table.basis]
    assert sizes[0] <= min(sizes) * (1 + 1e-8)


@given(st.sampled_from(FEW), st.integers(0, 10**6))
def test_the_nearest_frame_leads_back(number, seed):
    """To the cell that a crystal was given in, up to changes that leave a cell as it is."""
    rng = np.random.default_rng(seed)
    crystal = random_crystal(number, rng, 2)
    other = crystal.in_another_basis(rng, 1)
    start, goal = lattice_coordinates(crystal.lattice), lattice_coordinates(other.lattice)
    turn, origin, names = nearest_frame(number, start, goal)
    found = np.linalg.inv(turn).T @ crystal.lattice
    np.testing.assert_allclose(found @ found.T, other.lattice @ other.lattice.T, atol=1e-6)
    moved = crystal.frac @ turn.T + origin
    for x, w in zip(moved, crystal.positions, strict=True):
        assert locate(number, x, CELL).index == names[w]
    sites = represented(number, names[crystal.positions].tolist(), moved)
    for one, image, w in zip(moved, sites, names[crystal.positions], strict=True):
        off = image - wyckoff_positions(number)[w].base
        np.testing.assert_allclose(wyckoff_positions(number)[w].projector @ off, off, atol=1e-9)
        group = SpaceGroup(number)
        gap = orbit(one, group.rotations, group.translations, CELL)[0] - image
        assert np.abs(gap - np.rint(gap)).max(1).min() < 1e-6


# descriptions


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_a_crystal_given_otherwise(number):
    for seed in range(3):
        rng = np.random.default_rng([number, seed])
        crystal = random_crystal(number, rng, 1 + seed)
        assert_alike(crystal, crystal.otherwise(rng))


@given(st.integers(1, 230), st.integers(1, 6), st.integers(0, 10**6))
def test_any_crystal_given_otherwise(number, sites, seed):
    rng = np.random.default_rng(seed)
    crystal = random_crystal(number, rng, sites)
    assert_alike(crystal, crystal.otherwise(rng))


@pytest.mark.parametrize("number", range(1, 16))
def test_a_crystal_given_in_a_long_basis(number):
    for seed in range(3):
        rng = np.random.default_rng([number, seed, 1])
        crystal = random_crystal(number, rng, 3)
        assert_alike(crystal, crystal.in_another_basis(rng, 5))


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_the_description_is_the_same_crystal(number):
    rng = np.random.default_rng([number, 2])
    crystal = random_crystal(number, rng, 3)
    assert_same_crystal(crystal, crystal.described())


@pytest.mark.parametrize("number", FEW)
def test_variants_are_the_same_crystal(number):
    rng = np.random.default_rng([number, 6])
    crystal = random_crystal(number, rng, 3)
    given = crystal.number, crystal.positions, crystal.frac, crystal.kinds, crystal.lattice
    found = descriptions(*given, most=6)
    assert 1 <= len(found) <= 6
    first = crystal.described()
    assert found[0].positions == first.positions
    assert np.array_equal(found[0].basis, first.basis)
    np.testing.assert_allclose(found[0].frac, first.frac)
    for one in found:
        assert one.positions == first.positions
        assert_same_crystal(crystal, one)
    assert len(descriptions(*given, most=6, window=0.0)) <= len(found)
    assert len(descriptions(*given, most=MOST_BASES, window=0.1)) >= 1


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_what_a_description_holds(number):
    rng = np.random.default_rng([number, 3])
    crystal = random_crystal(number, rng, 4)
    found = crystal.described()
    table = wyckoff_positions(number)
    assert sorted(found.order.tolist()) == list(range(len(crystal.frac)))
    kinds = [crystal.kinds[k] for k in found.order]
    keys = list(zip(kinds, found.positions, strict=True))
    assert keys == sorted(keys)
    for w, values, point in zip(found.positions, found.parameters, found.frac, strict=True):
        assert values.shape == (table[w].freedom,)
        assert ((values >= -EDGE) & (values < 1 - EDGE)).all()
        np.testing.assert_allclose(point[table[w].parameters], values, atol=1e-12)
        off = (np.eye(3) - table[w].projector) @ (point - table[w].base)
        np.testing.assert_allclose(off, 0, atol=1e-9)
    # of each kind and position, sites in the order of the quarters they are in
    quarters = [np.rint(v / QUARTER + QUARTER_OFFSET).tolist() for v in found.parameters]
    values = [v.tolist() for v in found.parameters]
    rows = list(zip(keys, quarters, values, strict=True))
    assert sorted(rows) == rows


@pytest.mark.parametrize("number", range(1, 16))
def test_cells_are_short(number):
    """No longer than the shortest cell in which the labels are as small, or a little."""
    rng = np.random.default_rng([number, 7])
    crystal = replace(random_crystal(number, rng, 1), kinds=[1])
    found, table = cell_of(crystal, crystal.described()), frames(number)
    size = (np.linalg.norm(found, axis=1) ** 2).sum()
    shortest = min((np.linalg.norm(b.T @ found, axis=1) ** 2).sum() for b in table.basis)
    assert size <= 1.6 * shortest


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_a_description_describes_itself(number):
    rng = np.random.default_rng([number, 4])
    crystal = random_crystal(number, rng, 3)
    found = crystal.described()
    kinds = [crystal.kinds[k] for k in found.order]
    lattice = cell_of(crystal, found)
    assert_alike(crystal, Crystal(number, list(found.positions), found.frac, kinds, lattice))


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_smallest_labels_by_trying_all_frames(number):
    rng = np.random.default_rng([number, 5])
    crystal = random_crystal(number, rng, 4)
    for turned in (False, True):
        labels, rows = smallest_labels(number, crystal.positions, crystal.kinds, turned=turned)
        names = frames(number).names if turned else shift_vectors(number)[1]
        every = names[:, crystal.positions]
        tried = [sorted(zip(crystal.kinds, row.tolist(), strict=True)) for row in every]
        assert rows.tolist() == [k for k, d in enumerate(tried) if d == min(tried)]
        assert labels == tuple(every[rows[0]].tolist())
    kinds = [crystal.kinds[k] for k in crystal.described().order]
    found = sorted(zip(kinds, crystal.described().positions, strict=True))
    assert found == min(tried)


def reference_crystals() -> list[tuple[str, Crystal]]:
    data = reference_dataset()
    rows, found = site_positions(data), []
    for k in range(len(data)):
        own, number = data.sites_of(k), int(data.group[k])
        local = (rows[own] - table_start()[number - 1]).tolist()
        kinds = data.numbers[own].tolist()
        found.append(
            (str(data.id[k]), Crystal(number, local, data.frac[own], kinds, data.lattice[k]))
        )
    return found


def test_structure_types_given_otherwise():
    """Coordinates of published structures: simple fractions among them."""
    compared = 0
    for k, (_, crystal) in enumerate(reference_crystals()):
        assert_alike(crystal, crystal.otherwise(np.random.default_rng(k)))
        assert_same_crystal(crystal, crystal.described())
        compared += 1
    assert compared > 90


@pytest.mark.slow
def test_structure_types_match_their_descriptions():
    """By pymatgen, which knows nothing of groups and cells."""
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1)
    compared = 0
    for k, (_, crystal) in enumerate(reference_crystals()):
        if len(crystal.atoms()[0]) > 24:
            continue
        other = crystal.otherwise(np.random.default_rng([k, 1]))
        found = other.described()
        kinds = [other.kinds[s] for s in found.order]
        points, z = atoms_of(other.number, found.frac, kinds)
        mine, my_z = crystal.atoms()
        one = Structure(Lattice(crystal.lattice), my_z.tolist(), mine)
        two = Structure(Lattice(cell_of(other, found)), z.tolist(), points)
        assert matcher.fit(one, two)
        compared += 1
    assert compared > 60


def test_wurtzite_given_by_its_other_atoms():
    """The zinc and the sulphur atom stored may be of either layer."""
    crystal = dict(reference_crystals())["wurtzite"]
    assert crystal.number == 186
    for seed in range(5):
        assert_alike(crystal, crystal.by_other_images(np.random.default_rng(seed)))


def test_structures_of_one_type_are_described_alike():
    """A perovskite with either cation at the origin."""
    centred = np.array([[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0.5, 0]])
    crystal = []
    for frac in (centred, centred + 0.5):
        positions = [locate(221, x, CELL).index for x in frac]
        crystal.append((positions, describe(221, positions, frac, [1, 2, 3], CELL)))
    assert crystal[0][0] != crystal[1][0]
    assert crystal[0][1].positions == crystal[1][1].positions
    np.testing.assert_allclose(crystal[0][1].frac, crystal[1][1].frac, atol=1e-12)


@pytest.mark.parametrize("number", [1, 2, 4, 8, 14])
def test_small_strains_change_little(number):
    """A cell on either side of a boundary of reduction is described alike."""
    alike = 0
    for seed in range(8):
        rng = np.random.default_rng([number, seed, 9])
        crystal = random_crystal(number, rng, 4)
        a, _, c = np.linalg.norm(crystal.lattice, axis=1)
        found = []
        for ratio in (0.99, 1.01):
            strained = crystal.lattice * np.array([1.0, 1.0, ratio * a / c])[:, None]
            moved = crystal.frac + 0.002 * rng.normal(size=crystal.frac.shape)
            free = [wyckoff_positions(number)[w].projector for w in crystal.positions]
            moved = crystal.frac + np.einsum("aij,aj->ai", free, moved - crystal.frac)
            found.append(replace(crystal, frac=moved, lattice=strained).described())
        one, two = found
        gaps = [x - y for x, y in zip(one.parameters, two.parameters, strict=True)]
        alike += all(np.abs(g - np.rint(g)).max(initial=0.0) < 0.03 for g in gaps)
    assert alike >= 7


@pytest.mark.parametrize("number", [2, 62, 166, 194, 225])
def test_sites_off_their_position_are_refused(number):
    table = wyckoff_positions(number)
    point = table[0].base + np.array([0.0111, 0.0173, 0.0231])
    lattice = random_lattice(number, np.random.default_rng(0), 100.0)
    with pytest.raises(SymmetryError, match="is not on position"):
        describe(number, [0], point[None], [1], lattice)
