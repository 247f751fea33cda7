"""The 230 groups: table against spglib, group axioms in exact integers, sites, lattices."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import spglib

from langevin_xtal.errors import LatticeError, SymmetryError
from langevin_xtal.symmetry import (
    CRYSTAL_SYSTEMS,
    SpaceGroup,
    cell_directions,
    has_fixed_angles,
    lattice_driver,
    operation_table,
    orbit,
    site_projector,
    snap_site,
    stabiliser,
    wrap,
)
from tests.crystals import random_lattice

ALL_GROUPS = range(1, 231)
HEXAGONAL_FAMILY = range(143, 195)

SYSTEM_OF_POINT_GROUP = {
    "triclinic": "1 -1",
    "monoclinic": "2 m 2/m",
    "orthorhombic": "222 mm2 mmm",
    "tetragonal": "4 -4 4/m 422 4mm -42m 4/mmm",
    "trigonal": "3 -3 32 3m -3m",
    "hexagonal": "6 -6 6/m 622 6mm -62m 6/mmm",
    "cubic": "23 m-3 432 -43m m-3m",
}
"""ITA volume A, table 2.1.2.1; -42m and -62m in either orientation."""

CENTRING = {
    "P": [(0, 0, 0)],
    "A": [(0, 0, 0), (0, 12, 12)],
    "B": [(0, 0, 0), (12, 0, 12)],
    "C": [(0, 0, 0), (12, 12, 0)],
    "I": [(0, 0, 0), (12, 12, 12)],
    "F": [(0, 0, 0), (0, 12, 12), (12, 0, 12), (12, 12, 0)],
    "R": [(0, 0, 0), (8, 16, 16), (16, 8, 8)],
}
"""In units of 1/24; R in hexagonal axes, obverse."""

SPECIAL_POINTS = [
    (0, 0, 0),
    (1 / 2, 1 / 2, 1 / 2),
    (1 / 4, 1 / 4, 1 / 4),
    (1 / 8, 1 / 8, 1 / 8),
    (0, 1 / 4, 1 / 8),
    (1 / 3, 2 / 3, 1 / 4),
    (0, 1 / 2, 0.137),
    (0.137, 0.137, 0),
    (0.137, 0.274, 1 / 4),
    (0.137, 0.137, 0.137),
    (0.137, 1 / 4, 0.291),
]


@cache
def hall_numbers() -> dict[int, int]:
    """First Hall number of each group: spglib's default setting."""
    first: dict[int, int] = {}
    for hall in range(1, 531):
        first.setdefault(spglib.get_spacegroup_type(hall).number, hall)
    return first


def test_table_has_every_operation_once():
    table = operation_table()
    assert len(table.rotations) == len(table.translations24) == table.start[-1]
    assert len(table.start) == 231
    assert len(table.hall) == len(table.symbols) == len(set(table.symbols)) == 230
    assert sum(SpaceGroup(n).order for n in ALL_GROUPS) == table.start[-1]


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_equals_spglib(number):
    group = SpaceGroup(number)
    assert group.hall_number == hall_numbers()[number]
    assert group.symbol == spglib.get_spacegroup_type(group.hall_number).international_short
    database = spglib.get_symmetry_from_database(group.hall_number)
    np.testing.assert_array_equal(group.rotations, database["rotations"])
    off = group.translations - database["translations"]
    np.testing.assert_allclose(off, np.rint(off), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(group.translations24, np.rint(24 * group.translations))


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_crystal_system_is_that_of_the_point_group(number):
    kind = spglib.get_spacegroup_type(hall_numbers()[number])
    point_group = kind.pointgroup_international
    alias = {"-4m2": "-42m", "-6m2": "-62m"}
    names = SYSTEM_OF_POINT_GROUP[SpaceGroup(number).crystal_system].split()
    assert alias.get(point_group, point_group) in names


def test_crystal_systems_cover_the_numbers():
    covered = [n for _, first, last in CRYSTAL_SYSTEMS for n in range(first, last + 1)]
    assert covered == list(ALL_GROUPS)


def codes(rotations: np.ndarray, translations24: np.ndarray) -> np.ndarray:
    """One integer for each operation modulo lattice translations."""
    assert rotations.min() >= -1
    assert rotations.max() <= 1
    digits = (rotations + 1).reshape(*rotations.shape[:-2], 9) @ 3 ** np.arange(9)
    return digits * 24**3 + (translations24 % 24) @ 24 ** np.arange(3)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_group_axioms(number):
    """Identity first, closure, inverses; integers throughout, translations in units of 1/24."""
    group = SpaceGroup(number)
    w, t = group.rotations, group.translations24
    assert w.dtype == t.dtype == np.int64
    assert t.min() >= 0
    assert t.max() < 24
    np.testing.assert_array_equal(w[0], np.eye(3))
    np.testing.assert_array_equal(t[0], 0)
    own = codes(w, t)
    assert len(np.unique(own)) == group.order
    product = np.einsum("gij,hjk->ghik", w, w)
    shift = np.einsum("gij,hj->ghi", w, t) + t[:, None]
    table = codes(product, shift)
    # a Latin square of the group's own elements: closed, and every element has its inverse
    for lines in (table, table.T):
        np.testing.assert_array_equal(
            np.sort(lines, axis=1), np.broadcast_to(np.sort(own), table.shape)
        )
    np.testing.assert_array_equal(np.abs(np.rint(np.linalg.det(w))), 1)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_centring(number):
    group = SpaceGroup(number)
    expected = sorted(CENTRING[group.symbol[0]])
    assert sorted(map(tuple, group.centring)) == expected
    assert (group.centring[0] == 0).all()


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_parse_round_trips(number):
    group = SpaceGroup(number)
    spellings = [number, str(number), f" {number} ", group.symbol, str(group).rsplit(" ", 1)[0]]
    spellings += [group.symbol.lower(), group.symbol.replace("_", ""), " ".join(group.symbol)]
    for text in spellings:
        assert SpaceGroup.parse(text) == group


@pytest.mark.parametrize(
    "text", ["Pnmaa", 0, 231, "", " ", "-5", "+-5", "--5", "²", "6.2", "Q1", "9" * 5000, -1, "nan"]
)
def test_parse_refuses(text):
    with pytest.raises(SymmetryError, match=r"does not exist|is not known"):
        SpaceGroup.parse(text)


def irrational_points(number: int) -> np.ndarray:
    """(4, 3) general points, well away from special positions."""
    rng = np.random.default_rng(number)
    return np.sqrt([[2, 3, 5], [7, 11, 13]]).repeat(2, 0) + rng.uniform(0.01, 0.04, (4, 3))


def sites_of_all_kinds(number: int, lattice: np.ndarray) -> np.ndarray:
    """Rational points, and random ones drawn to special positions from afar."""
    group = SpaceGroup(number)
    rng = np.random.default_rng([number, 1])
    drawn = [
        snap_site(p, group.rotations, group.translations, lattice, radius)
        for p in rng.uniform(0, 1, (3, 3))
        for radius in (1.0, 3.0)
    ]
    return np.concatenate([SPECIAL_POINTS, wrap(np.array(drawn))])


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_orbit_stabiliser_theorem(number):
    group = SpaceGroup(number)
    lattice = random_lattice(number, np.random.default_rng(number), 1000.0)
    operations = group.rotations, group.translations, lattice
    for point in irrational_points(number):
        assert len(orbit(point, *operations)[0]) == group.order
        assert stabiliser(point, *operations).tolist() == [0]
    for point in sites_of_all_kinds(number, lattice):
        images, op = orbit(point, *operations)
        fixing = stabiliser(point, *operations)
        assert len(images) * len(fixing) == group.order
        again = np.einsum("hij,j->hi", group.rotations[op], point) + group.translations[op]
        np.testing.assert_allclose(images, again, rtol=0, atol=1e-12)
        # the stabiliser is closed: as many distinct products as elements
        own = codes(group.rotations[fixing], np.zeros((len(fixing), 3), dtype=int))
        product = np.einsum("gij,hjk->ghik", *[group.rotations[fixing]] * 2)
        table = codes(product, np.zeros((*product.shape[:2], 3), dtype=int))
        assert len(np.unique(own)) == len(fixing)
        assert set(table.flat) == set(own)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_site_projector(number):
    """Orthogonal projector onto the directions that every operation of the site keeps."""
    group = SpaceGroup(number)
    lattice = random_lattice(number, np.random.default_rng(number), 1000.0)
    for point in sites_of_all_kinds(number, lattice):
        fixing = stabiliser(point, group.rotations, group.translations, lattice)
        w = group.rotations[fixing]
        p = site_projector(w, lattice)
        np.testing.assert_allclose(p @ p, p, rtol=0, atol=1e-12)
        np.testing.assert_allclose(p, p.T, rtol=0, atol=1e-12)
        free = 3 - np.linalg.matrix_rank((w - np.eye(3)).reshape(-1, 3))
        np.testing.assert_allclose(np.trace(p), free, rtol=0, atol=1e-12)
        moved = point + np.array([0.03, -0.02, 0.05]) @ lattice @ p @ np.linalg.inv(lattice)
        still = stabiliser(moved, group.rotations, group.translations, lattice)
        assert set(fixing) <= set(still)


def cartesian(rotations: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """(G, 3, 3) for column vectors."""
    return lattice.T @ rotations @ np.linalg.inv(lattice.T)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_operations_are_isometries_of_the_lattice(number):
    """For any values of the free lengths; so noise isotropic in Å has the group's symmetry."""
    rng = np.random.default_rng(number)
    for _ in range(3):
        if has_fixed_angles(number):
            lengths = rng.uniform(2, 20, 3)[lattice_driver(number)[:3]]
            lattice = lengths[:, None] * cell_directions(number)
        else:
            lattice = random_lattice(number, rng, 200.0)
        turn = cartesian(SpaceGroup(number).rotations, lattice)
        eye = np.broadcast_to(np.eye(3), turn.shape)
        np.testing.assert_allclose(turn @ np.swapaxes(turn, 1, 2), eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", range(16, 231))
def test_cell_directions_are_unit_vectors_and_right_handed(number):
    directions = cell_directions(number)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=0, atol=1e-15)
    assert np.linalg.det(directions) > 0.8


@pytest.mark.parametrize("number", [1, 2, 3, 9, 15])
def test_cell_directions_need_fixed_angles(number):
    with pytest.raises(LatticeError, match="not fixed by symmetry"):
        cell_directions(number)


@pytest.mark.parametrize("number", range(16, 231))
def test_isotropic_noise_must_be_cartesian(number):
    """A Gaussian isotropic in fractional coordinates lacks the symmetry of hexagonal cells.

    Its density at a displacement u and at the turned one W u differs there; the density of a
    Gaussian isotropic in Å never does.
    """
    rng = np.random.default_rng(number)
    w = SpaceGroup(number).rotations
    lattice = random_lattice(number, rng, 500.0)
    u = rng.normal(0, 0.05, (20, 3))
    turned = np.einsum("gij,uj->gui", w, u)
    sigma = 0.05

    def log_density(displacement: np.ndarray) -> np.ndarray:
        return -0.5 * (displacement**2).sum(-1) / sigma**2

    in_angstrom = log_density(turned @ lattice) - log_density(u @ lattice)
    np.testing.assert_allclose(in_angstrom, 0, rtol=0, atol=1e-9)
    in_fractions = np.abs(log_density(turned) - log_density(u)).max()
    if number in HEXAGONAL_FAMILY:
        assert in_fractions > 0.1
    else:
        assert in_fractions < 1e-9
