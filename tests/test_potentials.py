"""Potentials by name, and energies of two conventions: against sevenn and pymatgen themselves."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import io
import sys
import types
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from langevin_xtal.cli import main
from langevin_xtal.cli.structures import references_of_second
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import InputError, MissingPackageError
from langevin_xtal.screen import hull
from langevin_xtal.screen.corrections import mp2020_correction
from langevin_xtal.screen.energies import single_point
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.own_energies import read_energies
from langevin_xtal.screen.potentials import (
    CORRECTED,
    UNCORRECTED,
    UNDECLARED,
    Potential,
    load_potential,
)
from langevin_xtal.screen.potentials.files import FAMILIES
from langevin_xtal.screen.relax import relax_cell
from langevin_xtal.screen.second_opinion import disagreement

EMT_NAME = "ase.calculators.emt:EMT"


def run(*arguments: str) -> types.SimpleNamespace:
    """The command line; its exit code and all it printed."""
    output = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code or 0
    return types.SimpleNamespace(exit_code=code, output=output.getvalue())


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
        full = relax_cell(cell, RelaxOptions(potential="sevennet-0", steps=0))
        assert energy == pytest.approx(full.energy, abs=2e-6)
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


class TestShippedTableOfSevenNet:
    @property
    def table(self) -> HullReferences:
        return HullReferences.shipped("sevennet-0")

    def test_says_what_it_is(self) -> None:
        table = self.table
        assert (table.potential, table.energies) == ("sevennet-0", CORRECTED)
        assert len(table) > 5000
        assert "CC-BY 4.0" in table.attribution
        assert "corrections added" in table.statement
        assert "at most 12 atoms" in table.gaps
        size = Path(hull.__file__).with_name(hull.SHIPPED["sevennet-0"][0]).stat().st_size
        assert size < 300_000

    def test_elements(self) -> None:
        """Those of CHGNet's table, so that no distance is unknown that the other knows."""
        alone = {f for f in self.table.formulas if " " not in f}
        assert alone == {f for f in HullReferences.shipped().formulas if " " not in f}

    @pytest.mark.parametrize(
        ("formula", "kilojoules", "atoms"),
        [
            ("Cl1 Na1", -411.2, 2),
            ("Mg1 O1", -601.6, 2),
            ("Cl1 K1", -436.5, 2),
            ("S1 Zn1", -206.0, 2),
            ("Al2 O3", -1675.7, 5),
            ("F1 Li1", -616.0, 2),
        ],
    )
    def test_heats_of_formation(self, formula: str, kilojoules: float, atoms: int) -> None:
        """Measured at 298 K (CRC Handbook); corrected energies are fitted to such ones."""
        energy = dict(zip(self.table.formulas, self.table.energy.tolist(), strict=True))
        if formula not in energy:
            pytest.skip("not among the phases")
        counts = [(part.rstrip("0123456789"), int(part.lstrip(ascii_letters)))
                  for part in formula.split()]  # fmt: skip
        mixed = sum(n * energy[f"{symbol}1"] for symbol, n in counts) / atoms
        assert energy[formula] - mixed == pytest.approx(kilojoules / 96.485 / atoms, abs=0.12)

    @needs_sevennet
    def test_known_crystals_are_on_it_and_wrong_ones_above(self) -> None:
        whose = load_potential("sevennet-0")
        self.table.check(whose)
        above = {}
        for name, cell in (
            ("NaCl", rocksalt("Na", "Cl", 5.69)),
            ("MgO", rocksalt("Mg", "O", 4.25)),
            ("MgO, zinc blende", cell_of(Structure.from_spacegroup(
                "F-43m", Lattice.cubic(4.6), ["Mg", "O"], [[0, 0, 0], [0.25] * 3]
            ).get_primitive_structure())),
        ):  # fmt: skip
            found = relax_cell(cell, RelaxOptions(potential="sevennet-0"))
            energy = self.table.energy_for(found.cell, found.energy, whose)
            above[name] = self.table.energy_above_hull(cell[2], energy).e_above_hull
        assert abs(above["NaCl"]) < 0.02
        assert abs(above["MgO"]) < 0.02
        assert above["MgO, zinc blende"] > 0.05

    @needs_sevennet
    def test_second_opinion_takes_it(self) -> None:
        assert references_of_second("sevennet-0", None) is self.table


class TestOwnEnergies:
    def table(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "mine.csv"
        path.write_text(text)
        return path

    def test_hull_equals_pymatgen(self, tmp_path: Path) -> None:
        """Random ternary system with several phases of one composition."""
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
        from pymatgen.core import Composition

        random = np.random.default_rng(3)
        formulas = ["Li", "Fe", "O2", *("Li2O", "Li2O2", "FeO", "Fe2O3", "Fe3O4")]
        formulas += ["LiFeO2", "LiFe5O8", "Li5FeO4", "LiFeO2", "Li2O"]
        energies = [float(random.normal(-2.0 if len(f) > 2 else 0.0, 0.7)) for f in formulas]
        lines = [
            f"p{k},{f},{e!r}" for k, (f, e) in enumerate(zip(formulas, energies, strict=True))
        ]
        path = self.table(tmp_path, "name,formula,energy_per_atom\n" + "\n".join(lines) + "\n")
        out = tmp_path / "hull.csv"
        done = run("hull", "--energies", str(path), "--out", str(out))
        assert done.exit_code == 0, done.output
        with out.open() as stream:
            found = {row["name"]: float(row["e_above_hull"]) for row in csv.DictReader(stream)}
        entries = [
            PDEntry(Composition(f), e * Composition(f).num_atoms, name=f"p{k}")
            for k, (f, e) in enumerate(zip(formulas, energies, strict=True))
        ]
        diagram = PhaseDiagram(entries)
        for entry in entries:
            assert found[entry.name] == pytest.approx(diagram.get_e_above_hull(entry), abs=6e-5)
        assert len(found) == len(entries)

    def test_total_energies(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "Formula,Energy\nNa4Cl4,-27.2\nNaCl,-6.8\nNa,-1.3\nCl2,-3.6\n")
        found = read_energies(path)
        assert [phase.energy for phase in found] == pytest.approx([-3.4, -3.4, -1.3, -1.8])
        assert [len(phase.numbers) for phase in found] == [8, 2, 1, 2]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("formula,e\nNaCl,1\n", "needs formula, and energy_per_atom"),
            ("formula,energy\nNaXq,1\n", "line 2: 'NaXq' is no formula"),
            ("formula,energy\nNa0.5Cl,1\n", "line 2: 'Na0.5Cl' is no formula"),
            ("formula,energy\nNaCl,1\nNa,nan\n", "line 3: energy 'nan' of Na"),
            ("formula,energy,energy_per_atom\nNaCl,1,1\n", "leave one"),
            ("formula,energy\n", "no line"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, words: str) -> None:
        done = run("hull", "--energies", str(self.table(tmp_path, text)))
        assert done.exit_code == 2
        assert words in done.output

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        done = run("hull", "--energies", "mine.txt")
        assert done.exit_code == 2
        assert "a CSV file of formulas and energies" in done.output


class TestBuild:
    def test_table_of_a_potential(self, tmp_path: Path) -> None:
        folder = tmp_path / "known"
        folder.mkdir()
        for name, edge in (("Cu", 3.6), ("Cu", 4.2), ("Al", 4.05)):
            bulk(name, "fcc", a=edge, cubic=True).write(folder / f"{name}{edge}.cif")
        out = tmp_path / "emt.npz"
        args = ["hull", "build", "--potential", EMT_NAME, "--data", str(folder)]
        args += ["--out", str(out), "--cache", str(tmp_path / "cache")]
        done = run(*args)
        assert done.exit_code == 0, done.output
        assert "no phase of 116 elements alone" in done.output
        table = HullReferences.load(out)
        assert table.formulas == ("Al1", "Cu1")
        atoms = bulk("Cu", "fcc", a=3.6)
        atoms.calc = EMT()
        assert table.energy[1] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        assert run(*args).exit_code == 2  # it is there
        again = run("hull", str(folder), "--potential", EMT_NAME, "--references", str(out),
                    "--out", str(tmp_path / "hull.csv"))  # fmt: skip
        assert again.exit_code == 0, again.output
        other = run("hull", str(folder), "--references", str(out), "--out",
                    str(tmp_path / "other.csv"))  # fmt: skip
        assert other.exit_code == 2
        assert "energies of two potentials must not be compared" in other.output

    def test_corrections_are_added(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from langevin_xtal.screen import hull_building

        mine = potential(EMT_NAME, energies=UNCORRECTED)
        monkeypatch.setattr(hull_building, "load_potential", lambda name: mine)
        cell = rocksalt("Na", "Cl", 5.69)
        result = types.SimpleNamespace(energy=-1.0, reason="")
        monkeypatch.setattr(hull_building, "point_energies", lambda *a, **k: [result])
        table, failed = hull_building.build_references([cell], ["salt"], potential=EMT_NAME)
        assert table.energies == CORRECTED
        assert table.energy[0] == pytest.approx(-1.307)
        assert not failed


class Softer(EMT):
    """EMT with four fifths of its energy differences."""

    def calculate(self, *given: Any, **more: Any) -> None:
        super().calculate(*given, **more)
        for name in ("energy", "free_energy", "forces", "stress"):
            if name in self.results:
                self.results[name] = 0.8 * self.results[name]


class TestSecondOpinion:
    @pytest.mark.parametrize(
        ("first", "second", "difference", "flagged"),
        [
            (0.01, 0.05, 0.04, False),
            (0.01, 0.07, 0.06, True),
            (0.09, 0.12, 0.03, True),
            (0.09, 0.11, 0.02, False),
            (0.3, 0.2, -0.1, True),
        ],
    )
    def test_flag(self, first: float, second: float, difference: float, flagged: bool) -> None:
        found = disagreement(first, second)
        assert found[0] == pytest.approx(difference)
        assert found[1] == flagged

    def test_unknown_is_not_flagged(self) -> None:
        value, flagged = disagreement(None, 0.1)
        assert np.isnan(value)
        assert not flagged

    def test_command(self, tmp_path: Path) -> None:
        softer = f"{__name__}:Softer"
        known, asked = tmp_path / "known", tmp_path / "asked"
        known.mkdir()
        asked.mkdir()
        bulk("Cu", "fcc", a=3.6).write(known / "cu.cif")
        bulk("Cu", "fcc", a=4.4).write(asked / "wide.cif")
        bulk("Cu", "fcc", a=3.62).write(asked / "near.cif")
        common = ["--cache", str(tmp_path / "cache"), "--workers", "1"]
        for name, table in ((EMT_NAME, "emt.npz"), (softer, "softer.npz")):
            done = run("hull", "build", "--potential", name, "--data", str(known), *common,
                       "--out", str(tmp_path / table))  # fmt: skip
            assert done.exit_code == 0, done.output
        done = run("hull", str(asked), "--potential", EMT_NAME, *common, "--references",
                   str(tmp_path / "emt.npz"), "--second-opinion", softer, "--second-references",
                   str(tmp_path / "softer.npz"), "--out", str(tmp_path / "hull.csv"))  # fmt: skip
        assert done.exit_code == 0, done.output
        with (tmp_path / "hull.csv").open() as stream:
            rows = {row["name"]: row for row in csv.DictReader(stream)}
        wide = rows["wide"]
        above = float(wide["e_above_hull"])
        assert above > 0.3
        assert float(wide["second_above_hull"]) == pytest.approx(0.8 * above, abs=2e-4)
        assert float(wide["disagreement"]) == pytest.approx(-0.2 * above, abs=2e-4)
        assert wide["note"] == "potentials disagree"
        assert rows["near"]["note"] == ""
        assert wide["second_potential"] == softer
        done = run("hull", str(asked), "--potential", EMT_NAME, *common, "--references",
                   str(tmp_path / "emt.npz"), "--second-opinion", softer, "--second-references",
                   str(tmp_path / "emt.npz"), "--out", str(tmp_path / "h2.csv"))  # fmt: skip
        assert done.exit_code == 2
        assert "two potentials" in done.output
