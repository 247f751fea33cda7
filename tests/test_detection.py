"""Symmetry of cells: what spglib finds, one way to fail, and no trace left in the process."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.config.tolerances import LOOSE, SYMPRECS, USUAL
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.screen.release import relax_twice
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.detection import (
    group_number,
    group_numbers,
    niggli_lattice,
    standard_cell,
    symmetry_dataset,
)

DATA = reference_dataset()
DOUBLE = np.eye(3) * 4.0, np.zeros((2, 3)), np.array([11, 11])
NOT_FINITE = np.eye(3) * np.nan, np.zeros((1, 3)), np.array([11])
NOWHERE = np.eye(3) * 4.0, np.full((1, 3), np.inf), np.array([11])
UNEVEN = np.eye(3) * 4.0, np.zeros((3, 3)), np.array([11])


def conventional(k: int) -> Cell:
    return DATA.unit(k).cell()


@pytest.mark.parametrize("k", range(0, len(DATA), 9), ids=lambda k: str(DATA.id[k]))
def test_groups_and_standard_cells_of_structure_types(k: int) -> None:
    """The groups of the table, and cells whose sizes its centring vectors give."""
    cell, group = conventional(k), SpaceGroup(int(DATA.group[k]))
    assert group_numbers(cell)[USUAL] == group_number(cell) == group.number
    volume = abs(np.linalg.det(cell[0])) / len(cell[2])
    for idealise in (True, False):
        for primitive, count in ((False, 1), (True, len(group.centring))):
            made = standard_cell(cell, primitive=primitive, idealise=idealise)
            assert made is not None
            assert len(made[2]) * count == len(cell[2])
            assert abs(np.linalg.det(made[0])) / len(made[2]) == pytest.approx(volume)
            assert group_number(made) == group.number
            assert made[2].dtype == np.int64


def test_a_tolerance_is_used() -> None:
    lattice, frac, numbers = conventional(DATA.id.tolist().index("rock salt"))
    frac = (
        frac + np.where(np.arange(len(frac)) == 0, 0.03, 0.0)[:, None] @ np.array([[1, 0, 0]]) / 5
    )
    found = group_numbers((lattice, frac, numbers))
    assert list(found) == list(SYMPRECS)
    assert found[USUAL] < found[LOOSE] == 225
    assert group_numbers((lattice, frac, numbers), [LOOSE]) == {LOOSE: 225}


@pytest.mark.parametrize("cell", [DOUBLE, NOT_FINITE, NOWHERE, UNEVEN])
def test_one_way_to_fail(cell: Cell) -> None:
    assert symmetry_dataset(cell) is None
    assert standard_cell(cell, primitive=True, idealise=True) is None
    assert group_number(cell) == 0
    assert group_numbers(cell) == dict.fromkeys(SYMPRECS, 0)


def test_warnings_of_spglib_are_not_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert group_number(conventional(0)) == DATA.group[0]
        assert group_number(DOUBLE) == 0


def test_threads_leave_the_filters_as_they_were() -> None:
    before = list(warnings.filters)
    cells = [conventional(k) for k in range(0, 24, 3)]
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        found[number] = [group_number(cell) for _ in range(10) for cell in cells]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
    assert set(map(tuple, found.values())) == {tuple(DATA.group[0:24:3].tolist() * 10)}


def test_a_cell_that_is_not_finite_is_a_failed_relaxation() -> None:
    options = RelaxOptions(potential="ase.calculators.emt:EMT")
    both = relax_twice([NOT_FINITE], options, workers=1)[0]
    assert both.note == "not relaxed: the cell is not finite, or empty"
    assert set(both.groups_before.values()) == {0}


def test_niggli_cells() -> None:
    """Three shortest vectors of a lattice, found from a skewed basis of it."""
    edges = np.diag([3.0, 4.0, 5.0])
    found = niggli_lattice(np.array([[1, 0, 0], [3, 1, 0], [-2, 5, 1]]) @ edges)
    assert found is not None
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [3, 4, 5], atol=1e-9)
    assert niggli_lattice(np.full((3, 3), np.nan)) is None
