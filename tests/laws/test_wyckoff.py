"""Wyckoff positions, computed from the operations alone, against counting laws and PyXtal."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry import SpaceGroup, snap_site, stabiliser
from langevin_xtal.symmetry.wyckoff import (
    locate,
    origin_shifts,
    polar_directions,
    shift_vectors,
    table_start,
    wyckoff_positions,
)
from tests.crystals import random_lattice

ALL_GROUPS = range(1, 231)


def test_international_tables_count_1731():
    assert table_start()[-1] == 1731
    assert [len(wyckoff_positions(n)) for n in (1, 47, 62, 194, 225, 227, 230)] == [
        1,
        27,
        4,
        12,
        12,
        9,
        8,
    ]


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_points_on_each_position(number):
    """A generic point has the multiplicity and free directions listed, and is located there."""
    rng = np.random.default_rng(number)
    group = SpaceGroup(number)
    lattice = random_lattice(number, rng, 400.0)
    for position in wyckoff_positions(number):
        point = position.base + position.projector @ rng.uniform(0.03, 0.19, 3)
        stay = stabiliser(point, group.rotations, group.translations, lattice)
        assert position.multiplicity * len(stay) == group.order
        np.testing.assert_allclose(
            group.rotations[stay].mean(axis=0), position.projector, atol=1e-12
        )
        op = rng.integers(group.order)
        image = group.rotations[op] @ point + group.translations[op] + rng.integers(-2, 3, 3)
        assert locate(number, image, lattice).index == position.index


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_same_multiplicities_and_freedom_as_pyxtal(number):
    """PyXtal's table comes from the International Tables, in another setting for some groups."""
    from pyxtal.symmetry import Group

    theirs = Counter(
        (w.multiplicity, w.get_dof()) for w in Group(number, quick=False).Wyckoff_positions
    )
    assert Counter((w.multiplicity, w.freedom) for w in wyckoff_positions(number)) == theirs


@pytest.mark.parametrize("number", [16, 62, 99, 139, 148, 166, 194, 205, 217, 225, 230])
def test_every_snapped_point_is_somewhere(number):
    rng = np.random.default_rng(number)
    group = SpaceGroup(number)
    lattice = random_lattice(number, rng, 200.0)
    seen = set()
    for _ in range(60):
        point = snap_site(
            rng.uniform(0, 1, 3), group.rotations, group.translations, lattice, rng.uniform(0, 2)
        )
        seen.add(locate(number, point, lattice).index)
    assert len(seen) > 1


def test_near_but_not_on_a_position_is_refused():
    lattice = np.eye(3) * 5.0
    with pytest.raises(SymmetryError, match="no Wyckoff position"):
        locate(225, np.array([0.0001, 0.0, 0.0]), lattice)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_parameters(number):
    """As many coordinates as there are degrees of freedom; others follow in whole steps.

    As in (x, 2x, z): every choice of parameters is a point of the position, and every point has
    its coordinates as parameters.
    """
    rng = np.random.default_rng(number)
    for w in wyckoff_positions(number):
        own, steps = w.parameters, w.directions
        assert own.shape == (w.freedom,)
        assert steps.shape == (3, w.freedom)
        assert np.array_equal(steps, np.rint(steps))
        assert np.array_equal(steps[own], np.eye(w.freedom))
        assert np.linalg.matrix_rank(steps) == w.freedom
        values = rng.uniform(-1, 1, (5, w.freedom))
        points = w.point(values)
        assert points.shape == (5, 3)
        np.testing.assert_allclose(points[:, own], values, atol=1e-12)
        off = (points - w.base) @ (np.eye(3) - w.projector).T
        np.testing.assert_allclose(off, 0, atol=1e-12)
        anywhere = w.base + rng.uniform(-1, 1, (5, 3)) @ w.projector.T
        np.testing.assert_allclose(w.point(anywhere[:, own]), anywhere, atol=1e-12)
        assert all(w.contains(x + rng.integers(-2, 3, 3)) for x in points)


POLAR_CLASSES = {"1", "2", "m", "mm2", "4", "4mm", "3", "3m", "6", "6mm"}


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_polar_directions(number):
    """Vectors that no operation turns, by solving for them; polar are ten crystal classes."""
    import spglib

    polar = polar_directions(number)
    group = SpaceGroup(number)
    np.testing.assert_allclose(polar @ polar, polar, atol=1e-12)
    np.testing.assert_allclose(
        group.rotations @ polar, polar[None].repeat(group.order, 0), atol=1e-12
    )
    unturned = 3 - np.linalg.matrix_rank((group.rotations - np.eye(3)).reshape(-1, 3))
    assert round(np.trace(polar)) == unturned
    kind = spglib.get_spacegroup_type(group.hall_number).pointgroup_international
    assert (unturned > 0) == (kind in POLAR_CLASSES)


def in_twentyfourths(values: np.ndarray) -> np.ndarray:
    whole = np.rint(24 * values).astype(np.int64)
    np.testing.assert_allclose(whole, 24 * values, atol=1e-9)
    return whole


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_shifts_are_all_that_keep_the_group(number):
    """Every shift by twenty-fourths that turns operations into operations, in whole numbers.

    Each is one of those listed, up to lattice and centring vectors and polar directions; no two
    of those differ by lattice and centring vectors alone.
    """
    group = SpaceGroup(number)
    centring = group.centring
    found = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for w in np.unique(group.rotations, axis=0):
        change = (found @ w.T - found)[:, None] - centring[None]
        found = found[(change % 24 == 0).all(2).any(1)]
    vectors = in_twentyfourths(shift_vectors(number)[0])
    free = in_twentyfourths(polar_directions(number)) // 24
    assert np.array_equal(free, polar_directions(number))  # axes of the cell
    across = np.eye(3, dtype=np.int64) - free

    def alike(shifts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(N, S) whether shifts (N, 3) differ from those listed by nothing that counts."""
        gap = shifts[:, None, None] - vectors[None, :, None] - centring[None, None]
        return (gap @ counts.T % 24 == 0).all(3).any(2)

    assert alike(found, across).any(1).all()
    assert np.array_equal(alike(vectors, np.eye(3, dtype=int)), np.eye(len(vectors), dtype=bool))
    assert not (vectors @ free).any()
    assert (vectors[0] == 0).all()


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_labels_after_a_shift(number):
    """A permutation among positions alike; shifting twice relabels twice."""
    vectors, labels = shift_vectors(number)
    table = wyckoff_positions(number)
    group = SpaceGroup(number)
    assert labels.shape == (len(vectors), len(table))
    assert labels[0].tolist() == list(range(len(table)))
    for row in labels:
        assert sorted(row.tolist()) == list(range(len(table)))
        for w, other in zip(table, row, strict=True):
            assert (w.multiplicity, w.freedom) == (
                table[other].multiplicity,
                table[other].freedom,
            )
    centring, across = group.centring / 24.0, np.eye(3) - polar_directions(number)
    for a, first in zip(vectors, labels, strict=True):
        for b, second in zip(vectors, labels, strict=True):
            gap = (a + b - vectors)[:, None] - centring[None]
            gap = gap @ across.T
            rows = np.flatnonzero((np.abs(gap - np.rint(gap)).max(2) < 1e-9).any(1))
            assert len(rows) >= 1
            assert all(np.array_equal(second[first], labels[row]) for row in rows)
    assert np.array_equal(origin_shifts(number), np.unique(labels, axis=0))


@pytest.mark.parametrize(
    "number", [3, 16, 25, 62, 99, 123, 148, 166, 187, 194, 216, 221, 225, 227]
)
def test_labels_of_shifted_points(number):
    """A site of position w is on position label[w] once the origin has moved."""
    rng = np.random.default_rng(number)
    lattice = random_lattice(number, rng, 400.0)
    vectors, labels = shift_vectors(number)
    for w in wyckoff_positions(number):
        point = w.base + w.projector @ rng.uniform(0.03, 0.19, 3)
        polar = polar_directions(number) @ rng.uniform(0, 1, 3)
        for shift, label in zip(vectors, labels, strict=True):
            assert locate(number, point + shift, lattice).index == label[w.index]
            assert locate(number, point + shift + polar, lattice).index == label[w.index]
