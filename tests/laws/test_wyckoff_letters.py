"""Letters of Wyckoff positions: against spglib, and against the letters of ITA's other origin."""

from __future__ import annotations

import numpy as np
import pytest
import spglib

from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError, SymmetryError
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.wyckoff import locate, position_index, wyckoff_positions

GENERAL = np.array([[0.1234, 0.2071, 0.3389], [0.0411, 0.4523, 0.1717]])
SMALL = np.array([0.0127, 0.0211, 0.0173])


@pytest.mark.parametrize("number", range(1, 231))
def test_letters_are_those_of_spglib(number: int) -> None:
    """On a crystal of this symmetry and no more; spglib may see it from another origin."""
    group, positions = SpaceGroup(number), wyckoff_positions(number)
    rotations, translations = group.rotations, group.translations
    start = np.array([[40.0, 3, 5], [3, 70, 7], [5, 7, 100]])
    metric = np.mean([r.T @ start @ r for r in rotations], axis=0)
    lattice = np.linalg.cholesky(metric)
    points = [*GENERAL, *(w.base + w.projector @ SMALL for w in positions)]
    atoms, site = [], []
    for k, point in enumerate(points):
        images = (point @ np.swapaxes(rotations, 1, 2) + translations) % 1.0
        for image in images:
            gap = image - np.array([a for a, s in zip(atoms, site, strict=True) if s == k] or [9])
            gap = gap - np.rint(gap) if gap.ndim == 2 else np.ones((1, 3))
            if np.abs(gap).max(axis=1).min() > 1e-6:
                atoms.append(image)
                site.append(k)
    found = spglib.get_symmetry_dataset(
        (lattice, np.array(atoms), np.array(site) + 1),
        symprec=1e-4,
        hall_number=group.hall_number,
    )
    assert found.number == number
    first = [site.index(k) for k in range(2, len(points))]
    matrix, shift = found.transformation_matrix, found.origin_shift
    letters = {}
    for row in first:
        there = matrix @ atoms[row] + shift
        letters[locate(number, there, found.std_lattice).index] = found.wyckoffs[row]
    assert letters == {w.index: w.letter for w in positions}


@pytest.mark.parametrize("number", [1, 47, 62, 227])
def test_names_lead_back(number: int) -> None:
    for w in wyckoff_positions(number):
        assert position_index(number, w.name) == position_index(number, w.letter) == w.index
        with pytest.raises(SymmetryError, match=rf"give {w.name}$"):
            position_index(number, f"{w.multiplicity + 1}{w.letter}")


def test_known_positions() -> None:
    """Diamond's atoms, and Pmmm's alpha."""
    assert locate(227, np.zeros(3), np.eye(3) * 3.57).name == "8a"
    assert position_index(47, "8\u03b1") == position_index(47, "A") == 26
    for text in ("", "4", "zz", "8e", "4c4", "c" * 99):
        with pytest.raises(SymmetryError, match=r"it has 4a, 4b, 4c, 8d$"):
            position_index(62, text)


class TestRequest:
    """Names of positions, with their multiplicity or without, are their indices."""

    def test_positions(self) -> None:
        sites = {"Cu": 2, "K": 1}
        for given in (("4c", "c", "8d"), ("c", "4c", "d"), (2, 2, 3), ("4c", 2, "d")):
            assert Request(62, sites, positions=given).positions == (2, 2, 3)

    def test_assignment(self) -> None:
        request = Request(225, formula="NaCl", z=4, assignment=[["4a"], ["b"]])
        assert request.assignment == ((0,), (1,))
        assert request == Request(225, formula="NaCl", z=4, assignment=((0,), (1,)))

    @pytest.mark.parametrize(
        ("positions", "message"),
        [
            (["8c"], "Wyckoff position 8c of group .* does not exist: c has multiplicity 4"),
            (["e"], "has no Wyckoff position 'e'; it has 4a, 4b, 4c, 8d"),
            ([4], "has positions 0 to 3; 4 was given"),
        ],
    )
    def test_what_does_not_exist(self, positions: list[str | int], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Request(62, {"Cu": 1}, positions=positions)

    def test_a_point_holds_one_site(self) -> None:
        with pytest.raises(InputError, match=r"position 4a of group .* is a point"):
            Request(62, {"Cu": 2}, positions=["a", "4a"])
