"""Atoms held in relaxation, constant volume, constant cell; notes on what relaxation did."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixScaled
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS

from langevin_xtal.cli import run
from langevin_xtal.config.screening import FileRelaxOptions, RelaxOptions
from langevin_xtal.crystal.ase import from_atoms, to_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.screen.changes import layer_gaps, relaxation_warning
from langevin_xtal.screen.fixing import chosen_atoms, held_of, hold, kept_symmetry
from langevin_xtal.screen.relax import relax, relax_cell, relax_folded
from langevin_xtal.screen.release import relax_released, relax_twice
from langevin_xtal.symmetry.detection import group_number

EMT_NAME = "ase.calculators.emt:EMT"


def options(**changes: Any) -> RelaxOptions:
    return RelaxOptions(potential=EMT_NAME, fmax=0.002, steps=400, **changes)


def strained() -> Atoms:
    """Eight atoms without symmetry, 3 % too wide."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array * 1.03, scale_atoms=True)
    atoms.numbers[0] = 79
    return atoms


def slab() -> Atoms:
    made = fcc111("Cu", (1, 1, 4), vacuum=6.0, periodic=True)
    made.wrap()
    return made


def moved(first: Cell, last: Cell) -> np.ndarray[Any, Any]:
    """(N,) farthest any fractional coordinate has gone."""
    return np.asarray(np.abs((last[1] - first[1] + 0.5) % 1.0 - 0.5).max(axis=1))


class TestAgainstAse:
    """ASE's own constraints and filters, with another optimiser, from the same start."""

    @pytest.mark.parametrize("keep_symmetry", [True, False])
    def test_constant_cell(self, keep_symmetry: bool) -> None:
        ours = relax_cell(
            from_atoms(strained()), options(constant_cell=True, keep_symmetry=keep_symmetry)
        )
        atoms = strained()
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=0.002)
        assert ours.converged
        assert np.array_equal(ours.cell[0], strained().cell.array)
        assert ours.energy == pytest.approx(atoms.get_potential_energy() / 8, abs=1e-6)

    def test_constant_volume(self) -> None:
        ours = relax_cell(from_atoms(strained()), options(constant_volume=True))
        atoms = strained()
        atoms.calc = EMT()
        BFGS(FrechetCellFilter(atoms, constant_volume=True), logfile=None).run(fmax=0.002)
        volume = strained().get_volume()
        assert ours.converged
        assert abs(np.linalg.det(ours.cell[0])) == pytest.approx(volume, rel=1e-9)
        assert np.abs(ours.cell[0] - strained().cell.array).max() > 0.01
        assert ours.energy == pytest.approx(atoms.get_potential_energy() / 8, abs=1e-6)

    @pytest.mark.parametrize("selection", ["1-4", "1,2,3,4", "4,1-3"])
    def test_fixed_atoms_in_a_constant_cell(self, selection: str) -> None:
        cell = from_atoms(strained())
        ours = relax_cell(cell, options(constant_cell=True, fix_atoms=selection))
        atoms = strained()
        atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=0.002)
        assert ours.converged
        assert moved(cell, ours.cell)[:4].max() < 1e-12
        assert moved(cell, ours.cell)[4:].min() > 1e-3
        assert ours.energy == pytest.approx(atoms.get_potential_energy() / 8, abs=1e-6)

    def test_fixed_atoms_in_a_cell_that_moves(self) -> None:
        cell = from_atoms(strained())
        ours = relax_cell(cell, options(fix_atoms="Au,3"))
        atoms = strained()
        atoms.set_constraint(FixAtoms([0, 2]))
        atoms.calc = EMT()
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.002)
        assert ours.converged
        assert moved(cell, ours.cell)[[0, 2]].max() < 1e-9
        assert ours.energy == pytest.approx(atoms.get_potential_energy() / 8, abs=1e-5)

    def test_an_atom_held_along_one_axis(self) -> None:
        held = np.zeros((8, 3), dtype=bool)
        held[5, 2] = True
        cell = from_atoms(strained())
        wanted = options(constant_cell=True, fix_atoms="file")
        ours = relax_folded([hold(cell, held)], wanted, workers=1)[0]
        atoms = strained()
        atoms.set_constraint(FixScaled([5], [False, False, True]))
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=0.002)
        assert ours.converged
        assert np.array_equal(ours.cell[2], cell[2])
        assert ours.cell[1][5, 2] == pytest.approx(cell[1][5, 2] % 1, abs=1e-12)
        assert ours.energy == pytest.approx(atoms.get_potential_energy() / 8, abs=1e-6)


class TestSymmetry:
    def test_fixed_atoms_are_taken_to_fixed_atoms(self) -> None:
        """Of a slab with inversion, one side held: the two sides are no longer equivalent."""
        atoms = slab()
        held = np.zeros((4, 3), dtype=bool)
        free = kept_symmetry(atoms.copy(), held, 0.01)
        held[0] = True
        kept = kept_symmetry(atoms.copy(), held, 0.01)
        assert (len(free.rotations), len(kept.rotations)) == (12, 6)
        assert all(own[0] == 0 for own in kept.symm_map)

    def test_one_side_of_a_slab(self) -> None:
        cell = from_atoms(slab())
        wanted = options(fix_atoms="1-2", constant_cell=True)
        kept = relax_cell(cell, wanted)
        alone = relax_cell(cell, options(
            fix_atoms="1-2", constant_cell=True, keep_symmetry=False))  # fmt: skip
        assert moved(cell, kept.cell)[:2].max() < 1e-12
        assert kept.energy == pytest.approx(alone.energy, abs=1e-6)
        assert group_number(kept.cell, 0.01) == 156  # P3m1; of the whole slab P-3m1

    def test_equivalent_cells_with_an_atom_held_are_not_folded(self) -> None:
        """Two primitive cells in one, an atom of one of them held."""
        atoms = bulk("Cu", a=3.7) * (2, 1, 1)
        cell = from_atoms(atoms)
        whole, one = (
            relax_folded([cell], options(fix_atoms=chosen), workers=1)[0]
            for chosen in ("1-2", "1")
        )
        assert np.array_equal(whole.cell[2], cell[2])
        assert whole.converged
        assert one.converged
        assert whole.energy == pytest.approx(one.energy, abs=1e-5)

    def test_constant_volume_survives_the_start_of_symmetry(self) -> None:
        """Coordinates rounded in a file are symmetrised; the volume is the file's."""
        atoms = bulk("Cu", a=3.7, cubic=True)
        atoms.set_cell([3.7, 3.7004, 3.6997], scale_atoms=True)
        cell = from_atoms(atoms)
        wanted = FileRelaxOptions(potential=EMT_NAME, constant_volume=True)
        found = relax_cell(cell, wanted)
        assert abs(np.linalg.det(found.cell[0])) == pytest.approx(atoms.get_volume(), rel=1e-10)
        assert np.ptp(np.diag(found.cell[0])) < 1e-9


class TestChoosing:
    NUMBERS = np.array([29, 29, 8, 8, 14])

    @pytest.mark.parametrize(
        ("selection", "held"),
        [("1", [0]), ("2-4", [1, 2, 3]), ("O", [2, 3]), ("5,O,1", [0, 2, 3, 4]), ("3-3", [2])],
    )
    def test_numbers_and_elements(self, selection: str, held: list[int]) -> None:
        found = chosen_atoms(selection, self.NUMBERS)
        assert np.flatnonzero(found.all(axis=1)).tolist() == held
        assert found.any(axis=1).sum() == len(held)

    @pytest.mark.parametrize(
        ("selection", "said"),
        [
            ("6", "fix_atoms 6: atoms of a.cif are numbered from 1 to 5"),
            ("0-2", "numbered from 1 to 5"),
            ("4-2", "numbered from 1 to 5"),
            ("K", "fix_atoms K: a.cif has no K"),
            ("Xx", "there is no element Xx"),
            ("file", "a.cif marks no atom as fixed"),
        ],
    )
    def test_what_is_not_there(self, selection: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            chosen_atoms(selection, self.NUMBERS, None, "a.cif")

    @pytest.mark.parametrize("selection", ["1;2", "cu", "1-", "1,,2", "layer 2", "-3", "1 2"])
    def test_what_is_no_selection(self, selection: str) -> None:
        with pytest.raises(InputError, match="should be atoms' numbers from 1"):
            RelaxOptions(fix_atoms=selection)

    def test_cell_and_volume(self) -> None:
        with pytest.raises(InputError, match="constant_cell keeps the volume too"):
            RelaxOptions(constant_cell=True, constant_volume=True)

    def test_release_with_fixed_atoms(self) -> None:
        with pytest.raises(InputError, match="displaces every atom"):
            relax_released([from_atoms(slab())], options(fix_atoms="1"), workers=1)

    def test_marks_come_off(self) -> None:
        rng = np.random.default_rng(0)
        held = rng.random((5, 3)) < 0.5
        cell = (np.eye(3), rng.random((5, 3)), self.NUMBERS)
        plain, found = held_of(hold(cell, held))
        assert np.array_equal(plain[2], self.NUMBERS)
        assert np.array_equal(found, held)


class TestRecords:
    def test_the_text_of_options_without_them_is_as_it_was(self) -> None:
        """Stores and caches compare it."""
        assert repr(RelaxOptions()) == (
            "RelaxOptions(potential='chgnet', fmax=0.05, steps=100, keep_symmetry=True, "
            "symprec=0.001, optimiser='LBFGS', max_step=0.2, min_distance=0.5, device='cpu')"
        )
        texts = {
            repr(RelaxOptions(**kind))
            for kind in (
                {}, {"fix_atoms": "1"}, {"fix_atoms": "2"}, {"constant_cell": True},
                {"constant_volume": True},
            )
        }  # fmt: skip
        assert len(texts) == 5

    def test_the_cache_tells_them_apart(self, tmp_path: Path) -> None:
        cell = from_atoms(strained())
        held = np.zeros((8, 3), dtype=bool)
        held[[2, 5]] = True
        ways = [
            (cell, options()),
            (cell, options(constant_cell=True)),
            (cell, options(fix_atoms="1-4", constant_cell=True)),
            (hold(cell, held), options(fix_atoms="file", constant_cell=True)),
        ]
        with Cache(tmp_path / "cache.sqlite") as store:
            first, again = (
                [relax([c], wanted, cache=store, workers=1)[0] for c, wanted in ways]
                for _ in range(2)
            )
        assert len({round(result.energy, 6) for result in first}) == 4
        for one, two in zip(first, again, strict=True):
            assert one.energy == two.energy
            assert np.array_equal(one.cell[1], two.cell[1])
            assert np.array_equal(two.cell[2], cell[2])

    @pytest.mark.parametrize("kind", ["constant_cell", "constant_volume"])
    def test_a_released_cell_keeps_what_is_constant(self, kind: str) -> None:
        cell = from_atoms(bulk("Cu", a=3.7))
        found = relax_twice([cell], options(**{kind: True}), workers=1)[0]
        for result in (found.kept, found.released):
            assert np.linalg.det(result.cell[0]) == pytest.approx(np.linalg.det(cell[0]), rel=1e-9)


class TestChanges:
    @staticmethod
    def layered(gap: float) -> Cell:
        """Two layers of graphene, ``gap`` apart [Å]."""
        one = graphene(vacuum=gap / 2)
        one.set_pbc(True)
        return from_atoms(one * (1, 1, 2))

    def test_gap_of_layers(self) -> None:
        assert layer_gaps(self.layered(3.35)).max() == pytest.approx(3.35)

    def test_a_slab_of_an_oblique_cell(self) -> None:
        """The gap is along the normal of the plane, not along the edge of the cell."""
        lattice = np.array([[3.0, 0, 0], [0, 3.0, 0], [4.0, 0, 9.0]])
        cell = (lattice, np.array([[0.0, 0, 0], [0.5, 0.5, 0.2]]), np.array([14, 14]))
        assert layer_gaps(cell).max() == pytest.approx(0.8 * 9.0)

    def test_layers_that_drift_apart(self) -> None:
        said = relaxation_warning(self.layered(3.35), self.layered(6.2))
        assert said == (
            "volume +85 % in relaxation; layers (0 0 1) drifted apart, gap 3.4 to 6.2 Å"
        )

    def test_what_is_not_worth_a_word(self) -> None:
        assert relaxation_warning(self.layered(3.35), self.layered(3.6)) == ""
        assert relaxation_warning(None, self.layered(9.0)) == ""
        wide, wider = self.layered(12.0), self.layered(12.3)  # vacuum that was there before
        assert relaxation_warning(wide, wider) == ""


class TestCommand:
    @pytest.fixture
    def relaxed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
        """Runs the command; its exit code and what it said."""

        def call(*arguments: Any) -> tuple[int, str]:
            more = ("--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1)
            given = ("relax", *arguments, "--potential", EMT_NAME, *more)
            code = run([str(argument) for argument in given])
            said = capsys.readouterr()
            return code, " ".join((said.out + said.err).split())

        return call

    def test_selective_dynamics(self, tmp_path: Path, relaxed: Any) -> None:
        atoms = slab()
        atoms.set_constraint(FixAtoms([0, 1]))
        write(tmp_path / "slab.vasp", atoms, format="vasp", direct=True)
        code, said = relaxed(tmp_path / "slab.vasp", "--fix-atoms", "file", "--constant-cell")
        assert code == 0, said
        assert "not used" not in said
        with (tmp_path / "out" / "summary.csv").open(encoding="utf-8") as stream:
            (row,) = csv.DictReader(stream)
        assert row["fixed_atoms"] == "2"
        given = from_atoms(read(tmp_path / "slab.vasp"))
        alike = FileRelaxOptions(potential=EMT_NAME, fix_atoms="1-2", constant_cell=True)
        assert float(row["energy"]) == pytest.approx(relax_cell(given, alike).energy, abs=1e-6)
        _, said = relaxed(tmp_path / "slab.vasp", "--constant-cell", "--force")
        assert "constraints on atoms of slab are not used" in said

    def test_settings_are_part_of_the_record(self, tmp_path: Path, relaxed: Any) -> None:
        write(tmp_path / "a.cif", bulk("Cu", a=3.7))
        assert relaxed(tmp_path / "a.cif")[0] == 0
        assert relaxed(tmp_path / "a.cif")[0] == 0
        assert relaxed(tmp_path / "a.cif", "--constant-cell")[0] == 2

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--fix-atoms", "9"), "fix_atoms 9: atoms of a are numbered from 1 to 1"),
            (("--fix-atoms", "O"), "fix_atoms O: a has no O"),
            (("--fix-atoms", "file"), "fix_atoms file: a marks no atom as fixed"),
            (("--fix-atoms", "top"), "fix_atoms 'top' should be"),
            (("--constant-cell", "--constant-volume"), "constant_cell keeps the volume too"),
            (("--fix-atoms", "1", "--release"), "--release displaces every atom"),
        ],
    )
    def test_bad_input(
        self, arguments: tuple[str, ...], expected: str, tmp_path: Path, relaxed: Any
    ) -> None:
        write(tmp_path / "a.cif", to_atoms(from_atoms(bulk("Cu", a=3.7))))
        code, said = relaxed(tmp_path / "a.cif", *arguments)
        assert code == 2
        assert expected in said
        assert not (tmp_path / "out").exists()
