"""Asymmetric units: to the atoms and back, for crystals of every group."""

from __future__ import annotations

import numpy as np
import pytest

from langevin_xtal.crystal.asymmetric import AsymmetricUnit, asymmetric_unit
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.symmetry import SpaceGroup
from tests.candidates import random_candidate

DATA = reference_dataset()


def unit_of(number: int) -> AsymmetricUnit:
    c = random_candidate(number)
    return AsymmetricUnit(number, c.lattice, c.numbers, c.frac, c.multiplicity)


@pytest.mark.all_groups
@pytest.mark.parametrize("number", range(1, 231))
def test_there_and_back(number: int) -> None:
    unit = unit_of(number)
    lattice, frac, numbers = unit.cell()
    c = random_candidate(number)
    np.testing.assert_array_equal(frac, c.atom_frac)
    np.testing.assert_array_equal(numbers, unit.atom_numbers)
    again = asymmetric_unit(lattice, frac, numbers)
    if again.group == number:  # a few sites may have more symmetry than was asked for
        assert sorted(again.multiplicity) == sorted(unit.multiplicity)
    assert again.volume / len(again.atom_numbers) == pytest.approx(unit.volume / len(numbers))
    small = unit.primitive_cell()
    assert len(small[2]) * len(SpaceGroup(number).centring) == len(numbers)
    assert abs(np.linalg.det(small[0])) / len(small[2]) == pytest.approx(
        unit.volume / len(numbers)
    )


@pytest.mark.parametrize("k", range(0, len(DATA), 3), ids=lambda k: str(DATA.id[k]))
def test_positions_and_free_coordinates(k: int) -> None:
    """Letters of the reference set, and sites rebuilt from their free coordinates alone."""
    unit = DATA.unit(k)
    assert [w.letter for w in unit.positions] == unit.wyckoff.tolist()
    assert [w.multiplicity for w in unit.positions] == unit.multiplicity.tolist()
    rotations, translations = unit.space_group.rotations, unit.space_group.translations
    for point, position, values in zip(unit.frac, unit.positions, unit.parameters, strict=True):
        assert len(values) == position.freedom
        images = rotations @ point + translations
        rebuilt = [position.point(image[position.parameters]) for image in images]
        gap = np.array(rebuilt) - images
        assert np.abs(gap - np.rint(gap)).max(axis=1).min() < 1e-8


def test_letters_are_empty_where_they_are_not_known() -> None:
    assert unit_of(62).wyckoff.tolist() == ["", ""]
