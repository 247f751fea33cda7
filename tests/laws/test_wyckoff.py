"""Wyckoff positions, computed from the operations alone, against counting laws and PyXtal."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry import SpaceGroup, snap_site, stabiliser
from langevin_xtal.symmetry.wyckoff import locate, table_start, wyckoff_positions
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
