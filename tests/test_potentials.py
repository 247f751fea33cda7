"""Potentials by name, and energies of two conventions: against sevenn and pymatgen themselves."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import InputError, MissingPackageError
from langevin_xtal.screen.corrections import mp2020_correction
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import (
    CORRECTED,
    UNCORRECTED,
    UNDECLARED,
    Potential,
    load_potential,
)
from langevin_xtal.screen.potentials.files import FAMILIES
from langevin_xtal.screen.relax import RelaxOptions, single_point

needs_sevennet = pytest.mark.skipif(
    importlib.util.find_spec("sevenn") is None, reason="sevenn is not installed"
)


def cell_of(structure: Structure) -> Cell:
    return structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)


def rocksalt(cation: str, anion: str, edge: float) -> Cell:
    made = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(edge), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    return cell_of(made.get_primitive_structure())


@needs_sevennet
class TestSevenNet:
    def test_energy_is_that_of_its_own_calculator(self) -> None:
        from sevenn.calculator import SevenNetCalculator

        atoms = bulk("NaCl", "rocksalt", a=5.69)
        atoms.rattle(0.05, seed=1)
        other = atoms.copy()
        other.calc = SevenNetCalculator("7net-0", device="cpu")
        mine = load_potential("sevennet-0").calculator()
        atoms.calc = mine
        assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy())
        assert np.allclose(atoms.get_forces(), other.get_forces(), atol=1e-5)
        assert np.allclose(atoms.get_stress(), other.get_stress(), atol=1e-6)
        # the same model serves the next calculator
        assert load_potential("sevennet-0").calculator().model is mine.model  # type: ignore[attr-defined]
        cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
        energy = single_point(cell, RelaxOptions(potential="sevennet-0"))
        assert energy == pytest.approx(atoms.get_potential_energy() / 2, abs=1e-5)
        known = set(mine.type_map)  # type: ignore[attr-defined]
        assert known == set(load_potential("sevennet-0").elements)

    @pytest.mark.parametrize("name", ["sevennet-0", "sevennet-l3i5"])
    def test_says_what_it_is(self, name: str) -> None:
        found = load_potential(name)
        assert (found.energies, found.licence) == (UNCORRECTED, "MIT")
        assert found.version.startswith("sevenn ")
        assert len(found.weights) == 12
        assert name in found.describe()

    def test_weights_differ(self) -> None:
        assert load_potential("sevennet-0").weights != load_potential("sevennet-l3i5").weights


def test_sevennet_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sevenn", None)
    load_potential.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install 'langevin-xtal\[sevennet\]'"):
        load_potential("sevennet-0")


class TestFiles:
    """The packages themselves are large and exclude each other: stand-ins take their place."""

    @pytest.fixture
    def mace(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        seen: list[Any] = []

        class MACECalculator(EMT):
            def __init__(self, *, model_paths: str, device: str, default_dtype: str) -> None:
                super().__init__()
                if "broken" in Path(model_paths).read_text():
                    raise RuntimeError("invalid magic number\nand more")
                seen.append((model_paths, device, default_dtype))
                self.z_table = types.SimpleNamespace(zs=[13, 29])

        package = types.ModuleType("mace")
        calculators = types.ModuleType("mace.calculators")
        calculators.MACECalculator = MACECalculator  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mace", package)
        monkeypatch.setitem(sys.modules, "mace.calculators", calculators)
        load_potential.cache_clear()
        return seen

    def test_file(self, mace: list[Any], tmp_path: Path) -> None:
        path = tmp_path / "my.model"
        path.write_text("weights")
        found = load_potential(f"mace:{path}@uncorrected")
        assert found.energies == UNCORRECTED
        assert found.elements == {13, 29}
        assert found.name == "mace:my.model"
        assert found.weights == hashlib.sha256(b"weights").hexdigest()[:12]
        assert load_potential(f"mace:{path}").energies == UNDECLARED
        assert load_potential(f"mace:{path}@corrected").energies == CORRECTED
        atoms = bulk("Cu")
        atoms.calc = found.calculator()
        emt = bulk("Cu")
        emt.calc = EMT()
        assert atoms.get_potential_energy() == emt.get_potential_energy()
        assert mace == [(str(path), "cpu", "float64")]  # read once

    def test_refusals(self, mace: list[Any], tmp_path: Path) -> None:
        path = tmp_path / "my.model"
        path.write_text("broken")
        with pytest.raises(InputError, match=r"cannot read my.model .invalid magic number.$"):
            load_potential(f"mace:{path}")
        with pytest.raises(InputError, match=r"no file other\.model"):
            load_potential(f"mace:{tmp_path / 'other.model'}")
        with pytest.raises(InputError, match="one of corrected, uncorrected, not wrong"):
            load_potential(f"mace:{path}@wrong")

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_package(
        self, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for package in ("mace", "orb_models", "mattersim", "nequip", "upet", "tensorpotential"):
            monkeypatch.setitem(sys.modules, package, None)
        path = tmp_path / "model.pt2"
        path.write_text(family)
        load_potential.cache_clear()
        with pytest.raises(MissingPackageError, match=rf"pip install 'langevin-xtal\[{family}\]'"):
            load_potential(f"{family}:{path}")
        with pytest.raises(InputError, match=f"{family}:/path/to/file"):
            load_potential(family)


class TestCorrections:
    """Values of the scheme's table in pymatgen, MP2020Compatibility.yaml, by hand."""

    @pytest.mark.parametrize(
        ("cell", "per_atom"),
        [
            (rocksalt("Na", "Cl", 5.69), -0.614 / 2),
            (rocksalt("Mg", "O", 4.25), -0.687 / 2),
            (rocksalt("Fe", "O", 4.33), (-0.687 - 2.256) / 2),  # PBE+U
            (rocksalt("Fe", "S", 5.0), -0.503 / 2),  # PBE
            (rocksalt("Cs", "Au", 7.0), 0.0),
        ],
    )
    def test_by_hand(self, cell: Cell, per_atom: float) -> None:
        assert mp2020_correction(cell) == pytest.approx(per_atom, abs=1e-9)

    def test_peroxide(self) -> None:
        made = Structure.from_spacegroup(
            "I4/mmm", Lattice.tetragonal(5.38, 6.85), ["Ba", "O"], [[0, 0, 0], [0, 0, 0.39]]
        )  # O-O 1.51 Å
        cell = cell_of(made.get_primitive_structure())
        assert mp2020_correction(cell) == pytest.approx(2 * -0.465 / 3, abs=1e-9)

    def test_a_cell_and_its_multiple(self) -> None:
        made = Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(4.33), ["Fe", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        )
        assert mp2020_correction(cell_of(made)) == pytest.approx(
            mp2020_correction(rocksalt("Fe", "O", 4.33))
        )


def potential(name: str = "mine", version: str = "0", energies: str = UNDECLARED) -> Potential:
    return Potential(name, version, energies, frozenset({11, 17}), EMT)


class TestOneHullPerPotential:
    table = HullReferences(
        ("Cl1", "Na1", "Cl1 Na1"),
        np.array([0.0, 0.0, -2.0]),
        ("a", "b", "c"),
        potential="mine",
        version="code 1, weights abc",
        energies=CORRECTED,
    )

    def test_its_own(self) -> None:
        self.table.check(potential(version="code 2, weights abc", energies=CORRECTED))

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (potential("other", "code 1, weights abc", CORRECTED), "two potentials"),
            (potential("mine", "code 1, weights xyz", CORRECTED), "make a table anew"),
            (potential("mine", "code 1, weights abc", UNDECLARED), "two conventions"),
        ],
    )
    def test_others_are_refused_in_one_sentence(self, other: Potential, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            self.table.check(other)
        assert "\n" not in str(caught.value)

    def test_uncorrected_energies_are_corrected(self) -> None:
        mine = potential(version="code 1, weights abc", energies=UNCORRECTED)
        self.table.check(mine)
        salt = rocksalt("Na", "Cl", 5.69)
        assert self.table.energy_for(salt, -1.6, mine) == pytest.approx(-1.6 - 0.307)
        assert np.isnan(self.table.energy_for(salt, float("nan"), mine))
        corrected = potential(version="code 1, weights abc", energies=CORRECTED)
        assert self.table.energy_for(salt, -1.6, corrected) == -1.6

    def test_the_convention_is_kept(self, tmp_path: Path) -> None:
        self.table.save(tmp_path / "t.npz")
        assert HullReferences.load(tmp_path / "t.npz").energies == CORRECTED
        shipped = HullReferences.shipped()
        assert shipped.energies == CORRECTED
        shipped.check(load_potential("chgnet"))
