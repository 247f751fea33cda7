"""Energies without forces are those of the calculators, and of relaxation that does not move."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.ase import from_atoms, to_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import LangevinXtalWarning
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.screen.energies import point_energies, point_energy, single_point
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import relax_folded

EMT = RelaxOptions(potential="ase.calculators.emt:EMT")


def crystals(count: int) -> list[Cell]:
    """Small crystals of the built-in set, of several elements and symmetries."""
    known = StructureSet.from_packed(reference_dataset(), "reference set")
    cells = [cell for cell in known.cells() if len(cell[2]) <= 12]
    return [cells[k] for k in np.linspace(0, len(cells) - 1, count).astype(int)]


@pytest.mark.parametrize(
    "name",
    [
        "chgnet",
        pytest.param(
            "sevennet-0",
            marks=pytest.mark.skipif(find_spec("sevenn") is None, reason="without SevenNet"),
        ),
    ],
)
def test_energy_is_that_of_the_calculator(name: str) -> None:
    potential = load_potential(name)
    assert potential.energy is not None
    known = [cell for cell in crystals(6) if set(cell[2].tolist()) <= potential.elements]
    assert len(known) > 3
    for cell in known:
        atoms = to_atoms(cell)
        alone = potential.energy(atoms)
        atoms.calc = potential.calculator()
        assert alone == pytest.approx(atoms.get_potential_energy(), abs=2e-6 * len(atoms))


def test_a_calculator_that_has_no_such_way() -> None:
    atoms = bulk("Cu", a=3.7, cubic=True)
    still = RelaxOptions(potential=EMT.potential, steps=0)
    cell = from_atoms(atoms)
    folded = relax_folded([cell], still, workers=1)[0]
    found = point_energies([cell], EMT, workers=1)[0]
    assert found.reason == ""
    assert found.energy == pytest.approx(folded.energy, abs=1e-9)
    assert single_point(cell, EMT) == pytest.approx(found.energy, abs=1e-9)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (from_atoms(bulk("Fe", a=2.9)), "unexpected failure"),  # EMT has no Fe
        ((np.eye(3) * 0.5, np.zeros((1, 3)), np.array([29])), "Å³"),
        (
            (np.eye(3) * 4, np.array([[0.0, 0, 0], [0.02, 0, 0]]), np.array([29, 29])),
            "0.080 Å",
        ),
        ((np.full((3, 3), np.nan), np.zeros((1, 3)), np.array([29])), "not finite"),
    ],
)
def test_what_has_no_energy_has_a_reason(cell: Cell, said: str) -> None:
    found = point_energy(cell, EMT)
    assert math.isnan(found.energy)
    assert said in found.reason


def test_what_the_cache_has_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [from_atoms(bulk("Cu", a=edge)) for edge in (3.6, 3.7)]
    cells.append(from_atoms(bulk("Fe", a=2.9)))
    with Cache(tmp_path / "cache.sqlite") as store:
        first = point_energies(cells, EMT, cache=store, workers=1)
        monkeypatch.setattr("langevin_xtal.screen.energies.point_energy", None)
        again = point_energies(cells, EMT, cache=store, workers=1)
    assert [(r.energy, r.reason) for r in again[:2]] == [(r.energy, r.reason) for r in first[:2]]
    assert again[2].reason == first[2].reason
    assert math.isnan(again[2].energy)


def test_damaged_entries_are_computed_again() -> None:
    class Damaged:
        def get(self, kind: str, keys: list[str]) -> dict[str, np.ndarray]:
            bad = (np.array([]), np.array([1.0, 2.0]), np.array([np.nan]), np.array([1e9]))
            return dict(zip(keys, bad, strict=True))

        def put(self, kind: str, values: object) -> None:
            pass

    cells = [from_atoms(bulk("Cu", a=edge)) for edge in (3.5, 3.6, 3.7, 3.8)]
    with pytest.warns(LangevinXtalWarning, match="4 entries of the cache are damaged"):
        found = point_energies(cells, EMT, cache=Damaged(), workers=1)  # type: ignore[arg-type]
    assert [r.energy for r in found] == [point_energy(cell, EMT).energy for cell in cells]
