"""What comes back from DFT: matched, checked, kept, and never at the cost of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner, Result
from pymatgen.core import Structure

from langevin_xtal.cli.collect import collect as command
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.export.espresso import export_qe
from langevin_xtal.export.vasp import export_vasp
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.own_energies import own_references
from langevin_xtal.screen.relax import relax_cell
from langevin_xtal.search.campaign import ranked_table
from langevin_xtal.search.collect import Collected, collect
from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.rows import Row, to_json
from langevin_xtal.search.second_opinion import ask_second
from langevin_xtal.search.store import Store, read_rows
from tests.dft_outputs import outcar, pw_out, vasprun


def rocksalt(edge: float, numbers: tuple[int, int] = (11, 17)) -> Cell:
    corners = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    frac = np.array([*corners, [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])
    return np.eye(3) * edge, frac, np.repeat(numbers, 4)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two candidates, NaCl and KCl, relaxed."""
    path = tmp_path / "salt.db"
    with Store(path, {"elements": "Na,K,Cl"}) as opened:
        opened.claim("sample", range(2), 2)
        rows = []
        for index, cell in enumerate((rocksalt(5.64), rocksalt(6.3, (19, 17)))):
            facts: dict[str, Any] = {"filtered": True, "duplicate_of": -1, "energy": -3.5}
            facts |= {"potential": "chgnet", "found_group": 225}
            rows.append(Row(index, "NaCl, any", 225, cell, facts, kept=cell))
        opened.add(rows)
    return path


@pytest.fixture
def exported(store: Path, tmp_path: Path) -> Path:
    out = tmp_path / "vasp"
    export_vasp(read_entries(store), out, potcar="spec")
    return out


def folder_of(exported: Path, element: str) -> Path:
    return next(p for p in exported.iterdir() if p.is_dir() and element in p.name)


def start(folder: Path) -> Structure:
    return Structure.from_file(folder / "POSCAR")


def grown(structure: Structure, factor: float) -> Structure:
    made = structure.copy()
    made.scale_lattice(made.volume * factor**3)
    return made


def content(store: Path) -> list[Any]:
    return [to_json(row) for row in read_rows(store)]


def finish(folder: Path, **options: Any) -> None:
    first = start(folder)
    text = vasprun([first, grown(first, 1.01)], [-6.7, -6.8], **options)
    (folder / "vasprun.xml").write_text(text)


class TestVasp:
    def test_finished_run(self, store: Path, exported: Path) -> None:
        folder = folder_of(exported, "Na")
        finish(folder)
        (folder / "OUTCAR").write_text(outcar(0.5))
        before = content(store)
        found = collect(exported, store)
        assert found.stored == ("000000",)
        assert list(found.refused.values()) == [
            "there is no result yet (vasprun.xml, pw.out, or a .traj or .extxyz file)"
        ]
        row = read_rows(store)[0]
        assert row.facts["dft_energy"] == pytest.approx(-3.4)
        assert row.facts["dft_gap"] == pytest.approx(3.5)
        assert row.facts["dft_magnetisation"] == pytest.approx(0.25)
        assert row.facts["dft_code"] == "vasp 6.4.2"
        assert row.facts["dft_set"] == "MPRelaxSet"
        assert row.dft is not None
        volume = abs(np.linalg.det(row.dft[0])) / len(row.dft[2])
        assert volume == pytest.approx(5.64**3 / 8 * 1.01**3, rel=1e-5)
        # nothing else has changed, and a second time changes nothing at all
        after = content(store)
        assert after[1] == before[1]
        facts = {k: v for k, v in after[0]["facts"].items() if not k.startswith("dft_")}
        assert {**after[0], "facts": facts} == {**before[0], "dft": after[0]["dft"]}
        again = collect(exported, store)
        assert (again.stored, again.known) == ((), ("000000",))
        assert content(store) == after
        table = ranked_table(read_entries(store)).set_index("uid")
        assert table.loc["000000", "dft_energy"] == pytest.approx(-3.4)
        assert np.isnan(table.loc["000001", "dft_energy"])

    def test_incar_is_compared(self, store: Path, exported: Path) -> None:
        folder = folder_of(exported, "Na")
        finish(folder, incar={"ENCUT": 400.0, "ISMEAR": 0})
        (note,) = collect(exported, store).notes.values()
        assert "ENCUT was 400.0 (exported 520" in note
        assert str(read_rows(store)[0].facts["dft_note"]) == note

    def refusal(self, found: Collected, folder: Path) -> str:
        assert not found.stored
        reason = found.refused[folder.name]
        assert "\n" not in reason
        return reason

    def test_what_is_not_taken(self, store: Path, exported: Path) -> None:
        folder, before = folder_of(exported, "Na"), content(store)
        finish(folder)
        path = folder / "vasprun.xml"
        whole = path.read_text()
        for share in (0.3, 0.6, 0.95):
            path.write_text(whole[: int(share * len(whole))])
            assert "cut short" in self.refusal(collect(exported, store), folder)
        path.write_text("no XML at all")
        assert "cut short" in self.refusal(collect(exported, store), folder)
        finish(folder, nelm=8)
        assert "electrons did not converge within NELM = 8" in self.refusal(
            collect(exported, store), folder
        )
        finish(folder, nsw=2)
        assert "geometry did not converge within NSW = 2" in self.refusal(
            collect(exported, store), folder
        )
        other = start(folder_of(exported, "K"))
        path.write_text(vasprun([other], [-6.0]))
        assert "is of KCl, but NaCl was exported" in self.refusal(collect(exported, store), folder)
        assert content(store) == before

    def test_another_start(self, store: Path, exported: Path) -> None:
        folder = folder_of(exported, "Na")
        first = grown(start(folder), 1.1)
        (folder / "vasprun.xml").write_text(vasprun([first], [-6.7]))
        reason = self.refusal(collect(exported, store), folder)
        assert "began at another structure than was exported" in reason
        found = collect(exported, store, continued=True)
        assert found.stored == ("000000",)
        assert "another structure" in found.notes[folder.name]

    def test_another_store(self, store: Path, exported: Path, tmp_path: Path) -> None:
        finish(folder_of(exported, "Na"))
        other = tmp_path / "other.db"
        with Store(other, {"elements": "Na,Cl"}) as opened:
            opened.claim("sample", range(1), 1)
            opened.add([Row(0, "NaCl", 225, rocksalt(5.9), {"filtered": True})])
        found = collect(exported, other)
        assert not found.stored
        assert any("another geometry than was exported" in r for r in found.refused.values())
        assert any("not in this store" in r for r in found.refused.values())

    def test_damaged_record(self, store: Path, exported: Path) -> None:
        folder = folder_of(exported, "Na")
        finish(folder)
        (folder / "export.json").write_text("{}")
        assert "export.json is damaged" in self.refusal(collect(exported, store), folder)

    def test_no_export(self, store: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"no folder that langevin-xtal export wrote"):
            collect(tmp_path / "empty", store)


class TestOtherCodes:
    def test_espresso(self, store: Path, tmp_path: Path) -> None:
        out = tmp_path / "qe"
        export_qe(read_entries(store), out, pseudo_dir=str(tmp_path))
        folder = folder_of(out, "Na")
        primitive = rocksalt(5.64)
        structure = Structure(primitive[0], primitive[2], primitive[1])
        pw_out(folder, structure, -40.0, done=False)
        assert "no JOB DONE" in collect(out, store).refused[folder.name]
        pw_out(folder, structure, -40.0)
        assert collect(out, store).stored == ("000000",)
        facts = read_rows(store)[0].facts
        assert facts["dft_energy"] == pytest.approx(-40.0 * 13.605693 / 8, abs=1e-4)
        assert facts["dft_gap"] == pytest.approx(5.1)
        assert facts["dft_code"] == "pw.x 7.2"

    @pytest.mark.parametrize(("force", "taken"), [(0.01, True), (0.2, False)])
    def test_ase(self, store: Path, exported: Path, force: float, taken: bool) -> None:
        folder = folder_of(exported, "Na")
        structure = start(folder)
        frames = []
        for factor in (1.0, 1.005):
            made = grown(structure, factor)
            atoms = Atoms(
                numbers=made.atomic_numbers, cell=made.lattice.matrix, pbc=True,
                scaled_positions=made.frac_coords,
            )  # fmt: skip
            forces = np.full((len(atoms), 3), force / np.sqrt(3))
            atoms.calc = SinglePointCalculator(atoms, energy=-7.0, forces=forces)
            frames.append(atoms)
        from ase.io import write

        write(folder / "relax.traj", frames)
        found = collect(exported, store)
        assert bool(found.stored) == taken
        if taken:
            assert read_rows(store)[0].facts["dft_energy"] == pytest.approx(-3.5)
        else:
            assert "forces up to 0.2 eV/Å" in found.refused[folder.name]

    def test_exported_run_and_collected(self, tmp_path: Path) -> None:
        """A calculation that really runs: ASE's EMT of copper, relaxed in the exported folder."""
        from ase.calculators.emt import EMT
        from ase.filters import UnitCellFilter
        from ase.io import read
        from ase.optimize import LBFGS

        path = tmp_path / "cu.db"
        corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        copper = (np.eye(3) * 3.65, corners, np.repeat(29, 4))
        with Store(path, {"elements": "Cu"}) as opened:
            opened.claim("sample", range(1), 1)
            opened.add([Row(0, "Cu", 225, copper, {"filtered": True})])
        out = tmp_path / "vasp"
        export_vasp(read_entries(path), out, potcar="spec")
        folder = folder_of(out, "Cu")
        atoms: Any = read(folder / "POSCAR")
        atoms.calc = EMT()
        moves = LBFGS(UnitCellFilter(atoms), trajectory=str(folder / "emt.traj"), logfile=None)
        assert moves.run(fmax=0.01)
        assert collect(out, path).stored == ("000000",)
        (row,) = read_rows(path)
        assert row.facts["dft_energy"] == pytest.approx(
            atoms.get_potential_energy() / len(atoms), abs=1e-6
        )
        assert row.facts["dft_code"] == "ASE, emt"
        assert row.dft is not None
        assert np.allclose(row.dft[0], atoms.cell.array)


class TestRecorded:
    """An output of pw.x 6.7 for a candidate that was exported, shortened to what is read of it:
    Si, PBE, norm-conserving, 30 Ry; k-point eigenvalues and iterations are left out."""

    OUTPUT = (Path(__file__).parent / "recorded" / "si_vc_relax.out").read_text(encoding="utf-8")
    EDGE = 2 * 2.72696832130768

    @pytest.fixture
    def silicon(self, tmp_path: Path) -> tuple[Path, Path]:
        """A store with a candidate, and the folder that was exported of it."""
        half = self.EDGE / 2
        lattice = half * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
        cell = (lattice, np.array([[0.0, 0, 0], [0.25, 0.25, 0.25]]), np.array([14, 14]))
        path = tmp_path / "si.db"
        with Store(path, {"elements": "Si"}) as opened:
            opened.claim("sample", range(1), 1)
            facts: dict[str, Any] = {"filtered": True, "duplicate_of": -1, "energy": -5.31}
            opened.add([Row(0, "Si", 227, cell, facts, kept=cell)])
        export_qe(read_entries(path), tmp_path / "qe")
        (folder,) = (p for p in (tmp_path / "qe").iterdir() if p.is_dir())
        return path, folder

    def test_is_taken(self, silicon: tuple[Path, Path]) -> None:
        path, folder = silicon
        (folder / "pw.out").write_text(self.OUTPUT, encoding="utf-8")
        found = collect(folder.parent, path)
        assert (found.stored, found.refused) == (("000000",), {})
        (row,) = read_rows(path)
        # the last of five total energies, in Ry for two atoms, and the last cell, by hand
        assert row.facts["dft_energy"] == pytest.approx(-15.74116617 * 13.605693 / 2, abs=1e-4)
        assert row.facts["dft_code"] == "pw.x 6.7MaX"
        assert row.facts["energy"] == -5.31
        assert row.dft is not None
        assert np.allclose(row.dft[0][0], [0, 2.737719425, 2.737719425])
        assert collect(folder.parent, path).known == ("000000",)

    @pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.99])
    def test_cut_short(self, silicon: tuple[Path, Path], share: float) -> None:
        path, folder = silicon
        before = content(path)
        text = self.OUTPUT[: int(share * len(self.OUTPUT))]
        (folder / "pw.out").write_text(text, encoding="utf-8")
        (reason,) = collect(folder.parent, path).refused.values()
        assert reason == "pw.out is cut short (no JOB DONE): the run was killed or goes on"
        assert content(path) == before

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            (
                "convergence has been achieved in   9 iterations",
                "convergence NOT achieved after 200 iterations: stopping",
                "the electrons did not converge (convergence NOT achieved)",
            ),
            (
                "bfgs converged in   4 scf cycles and   3 bfgs steps",
                "The maximum number of steps has been reached.",
                "the geometry did not converge (the maximum number of steps was reached)",
            ),
            ("Program PWSCF", "Program CP", "pw.out is no output of pw.x"),
            ("Si ", "Ge ", "pw.out is of Ge, but Si was exported"),
            (
                "celldm(1)=   7.287758",
                "celldm(1)=   8.287758",
                "pw.out began at another structure than was exported (a run continued from its "
                "own end is taken with --continued)",
            ),
        ],
    )
    def test_unconverged_and_foreign(
        self, silicon: tuple[Path, Path], old: str, new: str, said: str
    ) -> None:
        path, folder = silicon
        before = content(path)
        assert old in self.OUTPUT
        (folder / "pw.out").write_text(self.OUTPUT.replace(old, new), encoding="utf-8")
        (reason,) = collect(folder.parent, path).refused.values()
        assert reason == said
        assert content(path) == before

    def test_a_store_keeps_what_it_has(self, silicon: tuple[Path, Path]) -> None:
        """A result that was taken stays when the output is later damaged or replaced."""
        path, folder = silicon
        (folder / "pw.out").write_text(self.OUTPUT, encoding="utf-8")
        collect(folder.parent, path)
        before = content(path)
        for text in ("", self.OUTPUT[:5000], self.OUTPUT.replace("JOB DONE", "")):
            (folder / "pw.out").write_text(text, encoding="utf-8")
            assert len(collect(folder.parent, path).refused) == 1
            assert content(path) == before


class TestHull:
    def test_own_energies(self, store: Path, exported: Path) -> None:
        finish(folder_of(exported, "Na"))
        table = own_references(
            [np.array([11]), np.array([17]), np.array([11, 17])], [-1.3, -1.8, -3.45],
            ["Na", "Cl2", "NaCl"], "mine.csv",
        )  # fmt: skip
        collect(exported, store, references=table)
        assert read_rows(store)[0].facts["dft_e_above_hull"] == pytest.approx(0.05)

    def test_corrections(self, store: Path, exported: Path) -> None:
        finish(folder_of(exported, "Na"))
        table = HullReferences(
            ("Na1", "Cl1"), np.array([-1.3, -1.8]), ("a", "b"), "DFT, MP2020-corrected", "MP",
            energies="MP2020-corrected",
        )  # fmt: skip
        collect(exported, store, references=table)
        above = -3.4 - 0.307 + (1.3 + 1.8) / 2
        assert read_rows(store)[0].facts["dft_e_above_hull"] == pytest.approx(above)

    def test_a_potential_is_refused(self, store: Path, exported: Path) -> None:
        with pytest.raises(InputError, match="must not be compared"):
            collect(exported, store, references=HullReferences.shipped())


class TestCommand:
    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(command, [str(a) for a in arguments])

    def test_says_what_it_did(self, store: Path, exported: Path, tmp_path: Path) -> None:
        done = self.run(exported, "--into", store)
        assert isinstance(done.exception, LangevinXtalError)
        assert "none of 2 folders has a result" in str(done.exception)
        finish(folder_of(exported, "Na"))
        own = tmp_path / "mine.csv"
        own.write_text("formula,energy_per_atom\nNa,-1.3\nCl,-1.8\nNaCl,-3.5\n")
        done = self.run(exported, "--into", store, "--energies", own)
        assert done.exit_code == 0, done.output
        assert "1 results stored, 0 there already, 1 folders not taken" in done.output
        assert read_rows(store)[0].facts["dft_e_above_hull"] == pytest.approx(0.1)


class TestSecondOpinion:
    def test_is_kept_beside_the_first(self, tmp_path: Path) -> None:
        path = tmp_path / "cu.db"
        corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        facts: dict[str, Any] = {"filtered": True, "duplicate_of": -1, "same_as": -1}
        facts |= {"energy": 0.0, "energy_kept": 0.0, "energy_sampled": 0.1, "steps": 3}
        facts |= {"converged_kept": True, "ranked": True, "e_above_hull": 0.3}
        with Store(path, {"elements": "Cu"}) as opened:
            opened.claim("sample", range(2), 2)
            cells = [(np.eye(3) * edge, corners, np.repeat(29, 4)) for edge in (3.65, 3.7)]
            opened.add([Row(k, "Cu", 225, cell, facts, kept=cell) for k, cell in enumerate(cells)])
        name = "ase.calculators.emt:EMT"
        relaxed = relax_cell(cells[0], RelaxOptions(potential=name))
        table = HullReferences(
            ("Cu1",), np.array([relaxed.energy - 0.01]), ("cu",), potential=name, version=name
        )
        assert ask_second(path, name, table, best=1) == 1
        first, second = read_rows(path)
        assert first.facts["second_above_hull"] == pytest.approx(0.01, abs=1e-4)
        assert first.facts["disagreement"] == pytest.approx(-0.29, abs=1e-4)
        assert first.facts["energy"] == 0.0
        assert "second_energy" not in second.facts
        line = ranked_table(read_entries(path)).iloc[0]
        assert line["second_energy"] == pytest.approx(relaxed.energy, abs=1e-4)
        assert "potentials disagree" in line["flags"]
