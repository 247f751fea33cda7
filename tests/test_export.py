"""Exports: read back by the programs' own readers, never half-written, never overwritten."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import langevin_xtal as lx
from langevin_xtal.cli.export import export as export_command
from langevin_xtal.crystal.asymmetric import declared_sites
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.export import folders, structures, vasp
from langevin_xtal.export.cells import CELL_CHOICES, entry_name, export_cell
from langevin_xtal.export.espresso import export_qe, k_grid, read_pw_variable
from langevin_xtal.export.jobs import Job, script_text
from langevin_xtal.export.manifest import COLUMNS, ExportWarning, export_key
from langevin_xtal.export.notes import Notes
from langevin_xtal.export.phonons import displaced, export_phonopy, supercell_multiples
from langevin_xtal.export.structures import entry_cif, export_cif, export_xyz
from langevin_xtal.export.vasp import INPUT_SETS, export_vasp, read_incar_tag
from langevin_xtal.symmetry import SpaceGroup, orbit, wrap

pytestmark = pytest.mark.filterwarnings(
    "ignore::langevin_xtal.export.manifest.ExportWarning", "ignore::FutureWarning"
)


def entry_of(data: PackedDataset, name: str, **further: Any) -> Entry:
    """A structure type, all its atoms in the conventional cell."""
    k = data.id.tolist().index(name)
    group = SpaceGroup(int(data.group[k]))
    sites = data.sites_of(k)
    frac, numbers = [], []
    for point, number in zip(data.frac[sites], data.numbers[sites], strict=True):
        images, _ = orbit(point, group.rotations, group.translations, data.lattice[k])
        frac.append(wrap(images))
        numbers += [int(number)] * len(images)
    cell = (data.lattice[k], np.concatenate(frac), np.array(numbers))
    values: dict[str, Any] = {
        "uid": f"{k:06d}",
        "formula": to_structure(cell).composition.reduced_formula,
        "space_group": group.number,
        "found_group": group.number,
        "energy": -3.25 - k,
        "e_above_hull": 0.01 * k,
        "potential": "CHGNet 0.3.0",
        "provenance": {"seed": 7, "model": "small"},
    }
    return Entry(cell=cell, **(values | further))


@pytest.fixture(scope="module")
def rock_salt(reference: PackedDataset) -> Entry:
    return entry_of(reference, "rock salt")


@pytest.fixture(scope="module")
def hematite(reference: PackedDataset) -> Entry:
    """Corundum with iron for aluminium."""
    corundum = entry_of(reference, "corundum", formula="Fe2O3", uid="hematite")
    lattice, frac, numbers = corundum.cell
    return replace(corundum, cell=(lattice * 1.06, frac, np.where(numbers == 13, 26, numbers)))


@pytest.fixture(scope="module")
def three(rock_salt: Entry, hematite: Entry, reference: PackedDataset) -> list[Entry]:
    return [rock_salt, hematite, entry_of(reference, "orthorhombic perovskite (GdFeO3)")]


@pytest.fixture(autouse=True)
def without_pseudopotentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from pymatgen.core import SETTINGS

    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


def same_crystal(one: Cell, other: Any, tolerance: float = 1e-5) -> bool:
    """Equal volume per atom, and pymatgen maps one onto the other within ``tolerance`` [Å]."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    first, second = to_structure(one), other
    matcher = StructureMatcher(scale=False)
    distance = matcher.get_rms_dist(first, second)
    if distance is None or abs(first.volume / len(first) - second.volume / len(second)) > 1e-4:
        return False
    length = (first.volume / len(first)) ** (1 / 3)
    return float(distance[1]) * length < tolerance


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def folder_of(manifest: Any, rank: int = 1) -> Path:
    return manifest.path.parent / manifest.rows[rank - 1]["folder"]


class TestCells:
    @pytest.mark.parametrize("choice", CELL_CHOICES)
    def test_are_the_same_crystal(self, reference: PackedDataset, choice: Any) -> None:
        for name in reference.id.tolist()[::6]:
            cell = entry_of(reference, name).cell
            chosen = export_cell(cell, choice)
            assert same_crystal(cell, to_structure(chosen)), name
            if choice == "stored":
                assert chosen is cell

    def test_primitive_has_one_lattice_point(self, reference: PackedDataset) -> None:
        for name in reference.id.tolist()[::3]:
            entry = entry_of(reference, name)
            centring = len(SpaceGroup(entry.space_group).centring)
            primitive = export_cell(entry.cell, "primitive")
            assert len(primitive[2]) * centring == len(entry.cell[2]), name

    def test_symmetry_within_the_tolerance_becomes_exact(self, hematite: Entry) -> None:
        import spglib

        lattice, frac, numbers = hematite.cell
        shaken = frac + np.random.default_rng(0).normal(0, 5e-5, frac.shape)
        given: Any = (lattice, shaken, numbers)
        assert spglib.get_symmetry_dataset(given, symprec=1e-5).number == 1
        exact: Any = export_cell(given, "primitive")
        assert spglib.get_symmetry_dataset(exact, symprec=1e-5).number == 167

    def test_a_cell_without_symmetry_stays(self) -> None:
        twice = (np.eye(3) * 4, np.zeros((2, 3)), np.array([11, 11]))  # spglib refuses
        assert export_cell(twice, "primitive") is twice

    @given(
        formula=st.text(max_size=80),
        uid=st.one_of(st.text(max_size=80), st.sampled_from(["../../x", "/etc/passwd", "..", ""])),
        rank=st.integers(1, 99999),
    )
    @settings(max_examples=200, deadline=None)
    def test_names_stay_in_their_folder(self, formula: str, uid: str, rank: int) -> None:
        cell = (np.eye(3), np.zeros((1, 3)), np.array([1]))
        name = entry_name(rank, Entry(uid=uid, cell=cell, formula=formula, space_group=1))
        assert name.isascii()
        assert name.isprintable()
        assert " " not in name
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name) < 160
        assert name.startswith(f"{rank:04d}-")


class TestVasp:
    def test_reads_back(self, three: list[Entry], tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar, Kpoints, Poscar

        manifest = export_vasp(three, tmp_path / "vasp")
        assert (manifest.written, manifest.kept, manifest.failures) == (3, 0, {})
        assert manifest.rows[0]["folder"] == "0001-NaCl-225-" + three[0].uid
        for rank, entry in enumerate(three, start=1):
            folder = folder_of(manifest, rank)
            structure = Poscar.from_file(folder / "POSCAR").structure
            assert same_crystal(entry.cell, structure, 1e-8)
            expected = export_cell(entry.cell, "primitive")
            assert np.allclose(structure.lattice.matrix, expected[0], atol=1e-12)
            found = sorted(
                zip(structure.atomic_numbers, wrap(structure.frac_coords).tolist(), strict=True)
            )
            wanted = sorted(zip(expected[2].tolist(), wrap(expected[1]).tolist(), strict=True))
            assert [z for z, _ in found] == [z for z, _ in wanted]
            delta = np.array([f for _, f in found]) - np.array([f for _, f in wanted])
            assert np.abs(delta - np.rint(delta)).max() < 1e-9
            assert Incar.from_file(folder / "INCAR")["ENCUT"] == 520
            assert min(Kpoints.from_file(folder / "KPOINTS").kpts[0]) >= 2

    def test_settings_of_an_iron_oxide(self, hematite: Entry, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar, Poscar

        folder = folder_of(export_vasp([hematite], tmp_path))
        incar = Incar.from_file(folder / "INCAR")
        symbols = Poscar.from_file(folder / "POSCAR").site_symbols
        assert symbols == ["Fe", "O"]
        assert incar["MAGMOM"] == [5.0] * 4 + [0.6] * 6
        assert incar["LDAU"] is True
        assert incar["LDAUU"] == [5.3, 0]  # Wang, Maxisch, Ceder 2006, as the Materials Project
        assert incar["LDAUL"] == [2, 0]
        assert incar["ISMEAR"] == -5
        assert incar["ISIF"] == 3
        assert (folder / "POTCAR.spec").read_text().split() == ["Fe_pv", "O"]
        assert not (folder / "POTCAR").exists()

    def test_a_salt_has_no_u(self, rock_salt: Entry, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar

        incar = Incar.from_file(folder_of(export_vasp([rock_salt], tmp_path)) / "INCAR")
        assert not [key for key in incar if key.startswith("LDAU")]

    @pytest.mark.parametrize("name", INPUT_SETS)
    def test_every_set_writes(self, name: str, hematite: Entry, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar

        folder = folder_of(export_vasp([hematite], tmp_path, input_set=name))
        incar = Incar.from_file(folder / "INCAR")
        assert ("KSPACING" in incar) == (not (folder / "KPOINTS").exists())
        assert (incar.get("NSW", 0) == 0) == name.endswith("StaticSet")
        assert len(incar["MAGMOM"]) == 10
        metagga = any(word in name for word in ("Scan", "MP24"))
        assert (str(incar.get("METAGGA", "")).upper() == "R2SCAN") == metagga

    def test_overrides(self, hematite: Entry, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar

        texts = ("ENCUT=600", "kspacing=0.25", "MAGMOM=Fe:4,O:0.1", "LORBIT=", "LDAUU=Fe:3")
        overrides = dict(read_incar_tag(text) for text in texts)
        folder = folder_of(export_vasp([hematite], tmp_path, overrides=overrides))
        incar = Incar.from_file(folder / "INCAR")
        assert incar["ENCUT"] == 600
        assert incar["KSPACING"] == 0.25
        assert not (folder / "KPOINTS").exists()
        assert incar["MAGMOM"] == [4.0] * 4 + [0.1] * 6
        assert incar["LDAUU"] == [3, 0]
        assert "LORBIT" not in incar

    @pytest.mark.parametrize("text", ["ENCUT", "=5", "EN CUT=5", "MAGMOM=5", "NSW=many", "x;y=1"])
    def test_overrides_that_are_none(self, text: str) -> None:
        with pytest.raises(InputError, match="--incar"):
            read_incar_tag(text)

    def test_an_unknown_tag_is_reported(self, rock_salt: Entry, tmp_path: Path) -> None:
        manifest = export_vasp([rock_salt], tmp_path, overrides={"ENCTU": 600, "NSW": 5})
        assert [n for n in manifest.notes if "ENCTU" in n]
        assert not [n for n in manifest.notes if "NSW" in n]

    def test_conventional_cell(self, rock_salt: Entry, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Poscar

        atoms = [
            len(Poscar.from_file(folder_of(m) / "POSCAR").structure)
            for m in (
                export_vasp([rock_salt], tmp_path / "p"),
                export_vasp([rock_salt], tmp_path / "c", cell="conventional"),
            )
        ]
        assert atoms == [2, 8]

    def test_one_warning_for_many_candidates(
        self, reference: PackedDataset, tmp_path: Path
    ) -> None:
        metals = [
            entry_of(reference, name)
            for name in reference.id.tolist()
            if set(entry_of(reference, name).cell[2]) <= {*range(21, 31), *range(39, 49)}
        ][:3]
        assert len(metals) == 3
        with pytest.warns(ExportWarning) as caught:
            manifest = export_vasp(metals, tmp_path)
        assert len(manifest.notes) == len(caught) == 2
        assert "POTCAR.spec" in manifest.notes[0]
        assert "PMG_VASP_PSP_DIR" in manifest.notes[0]
        assert "MPMetalRelaxSet" in manifest.notes[1]
        assert "3 of 3" in manifest.notes[1]

    def test_other_warnings_do_not_pass(self, three: list[Entry], tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ExportWarning)
            export_vasp(three, tmp_path)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"input_set": "MPRelax"}, "'MPRelax'.*MPRelaxSet, MPMetalRelaxSet"),
            ({"input_set": "os"}, "'os' is not known"),
            ({"potcar": "none"}, "auto, spec, files"),
            ({"potcar": "files"}, "PMG_VASP_PSP_DIR"),
            ({"cell": "tiny"}, "primitive, conventional, stored"),
            ({"symprec": 0.0}, "symprec"),
            ({"symprec": float("nan")}, "symprec"),
            ({"overrides": {"encut ": 5}}, "'encut '"),
            ({"command": "  "}, "command"),
            ({"concurrent": 0}, "0 jobs"),
        ],
    )
    def test_bad_options(
        self, options: dict[str, Any], words: str, rock_salt: Entry, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=words):
            export_vasp([rock_salt], tmp_path / "out", **options)
        assert not list(tmp_path.rglob("INCAR"))

    def test_an_element_the_set_lacks(self, rock_salt: Entry, tmp_path: Path) -> None:
        lattice, frac, numbers = rock_salt.cell
        strange = replace(
            rock_salt, uid="cm", cell=(lattice, frac, np.where(numbers == 11, 96, 17))
        )
        manifest = export_vasp([strange, rock_salt], tmp_path, input_set="MITRelaxSet")
        assert manifest.failures == {"cm": "MITRelaxSet has no pseudopotential for Cm"}
        assert [row["uid"] for row in manifest.rows] == [rock_salt.uid]
        with pytest.raises(LangevinXtalError, match=r"none of the 1 candidates.*Cm"):
            export_vasp([strange], tmp_path / "only", input_set="MITRelaxSet")


class TestPotcar:
    @pytest.fixture
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder of pseudopotentials: only the headers, made up."""
        from pymatgen.core import SETTINGS

        root = tmp_path / "psp"
        for symbol in ("Na_pv", "Cl", "Fe_pv"):
            path = root / "POT_GGA_PAW_PBE" / symbol / "POTCAR"
            path.parent.mkdir(parents=True)
            path.write_text(
                f"PAW_PBE {symbol}\n 1.0\n parameters from PSCTR are:\n"
                f"   VRHFIN ={symbol.split('_')[0]}: made up\n   LEXCH  = PE\n"
                f"   TITEL  = PAW_PBE {symbol} 01Jan2000\n   ZVAL   = 7.0;\n"
                "   ENMAX  = 262.5; ENMIN = 196.9 eV\n END of PSCTR-controll parameters\n"
                " 1.0 2.0 3.0\n End of Dataset\n"
            )
        monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(root))
        return root

    def test_is_written_where_installed(
        self, installed: Path, rock_salt: Entry, tmp_path: Path
    ) -> None:
        from pymatgen.io.vasp import Poscar

        manifest = export_vasp([rock_salt, replace(rock_salt, uid="again")], tmp_path / "v")
        folder = folder_of(manifest)
        text = (folder / "POTCAR").read_text()
        headers = [line for line in text.splitlines() if line.startswith("PAW_PBE")]
        assert headers == ["PAW_PBE Na_pv", "PAW_PBE Cl"]
        assert Poscar.from_file(folder / "POSCAR").site_symbols == ["Na", "Cl"]
        assert text.count("End of Dataset\n") == 2
        assert not (folder / "POTCAR.spec").exists()
        assert manifest.rows[0]["potcar"] == "files"
        assert [n for n in manifest.notes if "POTCAR of Na_pv" in n and "unknown" in n]
        assert len(manifest.notes) == 2  # one per pseudopotential, not per candidate

    def test_specification_where_one_is_missing(
        self, installed: Path, hematite: Entry, rock_salt: Entry, tmp_path: Path
    ) -> None:
        manifest = export_vasp([hematite, rock_salt], tmp_path / "v")
        assert [row["potcar"] for row in manifest.rows] == ["spec", "files"]
        assert [n for n in manifest.notes if "PBE pseudopotentials O are not in" in n]
        asked = export_vasp([hematite, rock_salt], tmp_path / "f", potcar="files")
        assert "O are not in PMG_VASP_PSP_DIR" in asked.failures[hematite.uid]

    def test_specification_when_asked_for(
        self, installed: Path, rock_salt: Entry, tmp_path: Path
    ) -> None:
        manifest = export_vasp([rock_salt], tmp_path / "v", potcar="spec")
        assert manifest.rows[0]["potcar"] == "spec"
        assert manifest.notes == ()


class TestFolders:
    def test_manifest(self, three: list[Entry], tmp_path: Path) -> None:
        manifest = export_vasp(three, tmp_path)
        rows = rows_of(tmp_path / "manifest.csv")
        assert [tuple(row)[: len(COLUMNS)] for row in rows] == [COLUMNS] * 3
        for row, entry, mine in zip(rows, three, manifest.rows, strict=True):
            assert {k: v for k, v in row.items() if v} == {k: v for k, v in mine.items() if v}
            assert row["uid"] == entry.uid
            assert float(row["energy"]) == entry.energy
            assert float(row["e_above_hull"]) == entry.e_above_hull
            assert row["space_group"] == row["found_group"] == str(entry.space_group)
            assert row["structure_sha"] == cell_key(entry.cell)
            assert row["input_set"] == "MPRelaxSet"
            assert row["provenance_model"] == "small"
            assert (tmp_path / row["folder"] / "POSCAR").is_file()

    def test_reruns_change_nothing(self, three: list[Entry], tmp_path: Path) -> None:
        export_vasp(three, tmp_path)
        before = snapshot(tmp_path)
        again = export_vasp(three, tmp_path)
        assert (again.written, again.kept) == (0, 3)
        assert len(again) == 3
        forced = export_vasp(three, tmp_path, force=True)
        assert (forced.written, forced.kept) == (0, 3)
        assert snapshot(tmp_path) == before
        export_vasp(three, tmp_path / "other")
        assert snapshot(tmp_path / "other") == before

    def test_results_and_edits_are_left_alone(self, rock_salt: Entry, tmp_path: Path) -> None:
        folder = folder_of(export_vasp([rock_salt], tmp_path))
        (folder / "OUTCAR").write_text("results")
        (folder / "INCAR").write_text("edited")
        export_vasp([rock_salt], tmp_path)
        assert (folder / "OUTCAR").read_text() == "results"
        assert (folder / "INCAR").read_text() == "edited"

    def test_a_conflict_is_refused_before_anything_is_written(
        self, three: list[Entry], tmp_path: Path
    ) -> None:
        folder = folder_of(export_vasp(three[1:2], tmp_path))
        before = snapshot(tmp_path)
        for options in ({"input_set": "MITRelaxSet"}, {"overrides": {"ENCUT": 1}}):
            with pytest.raises(InputError, match=rf"{folder.name}.*--force"):
                export_vasp(three[1:], tmp_path, **options)
        lattice, frac, numbers = three[1].cell
        moved = replace(three[1], cell=(lattice * 1.01, frac, numbers))
        with pytest.raises(InputError, match=folder.name):
            export_vasp([moved], tmp_path)
        assert snapshot(tmp_path) == before

    def test_force_replaces(self, rock_salt: Entry, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar

        folder = folder_of(export_vasp([rock_salt], tmp_path))
        manifest = export_vasp([rock_salt], tmp_path, overrides={"ENCUT": 700}, force=True)
        assert manifest.written == 1
        assert Incar.from_file(folder / "INCAR")["ENCUT"] == 700
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
            [folder.name, "folders.txt", "manifest.csv", "submit.sh"]
        )

    def test_force_keeps_results_under_another_name(
        self, rock_salt: Entry, tmp_path: Path
    ) -> None:
        folder = folder_of(export_vasp([rock_salt], tmp_path))
        for encut in (700, 800):
            (folder / "OUTCAR").write_text(f"results {encut}")
            export_vasp([rock_salt], tmp_path, overrides={"ENCUT": encut}, force=True)
            assert not (folder / "OUTCAR").exists()
        old = [tmp_path / f"{folder.name}.old", tmp_path / f"{folder.name}.old2"]
        assert [(p / "OUTCAR").read_text() for p in old] == ["results 700", "results 800"]
        assert len(rows_of(tmp_path / "manifest.csv")) == 1

    def test_force_repairs(self, rock_salt: Entry, tmp_path: Path) -> None:
        folder = folder_of(export_vasp([rock_salt], tmp_path))
        before = snapshot(tmp_path)
        (folder / "POSCAR").unlink()
        assert export_vasp([rock_salt], tmp_path, force=True).written == 1
        assert snapshot(tmp_path) == before

    def test_a_foreign_folder_is_never_removed(self, rock_salt: Entry, tmp_path: Path) -> None:
        place = tmp_path / entry_name(1, rock_salt)
        place.mkdir()
        (place / "thesis.tex").write_text("precious")
        with pytest.raises(InputError, match="already"):
            export_vasp([rock_salt], tmp_path)
        export_vasp([rock_salt], tmp_path, force=True)
        assert (tmp_path / f"{place.name}.old" / "thesis.tex").read_text() == "precious"

    def test_a_damaged_record_is_a_conflict(self, rock_salt: Entry, tmp_path: Path) -> None:
        folder = folder_of(export_vasp([rock_salt], tmp_path))
        record = json.loads((folder / "export.json").read_text())
        for damage in ("", "[]", "[" * 100000, json.dumps(record | {"jobs": ["../.."]})):
            (folder / "export.json").write_text(damage)
            with pytest.raises(InputError, match="already"):
                export_vasp([rock_salt], tmp_path)

    def test_another_rank_finds_its_folder(self, three: list[Entry], tmp_path: Path) -> None:
        first = export_vasp(three[:2], tmp_path)
        second = export_vasp([three[2], three[1], three[0]], tmp_path)
        assert (second.written, second.kept) == (1, 2)
        assert second.rows[1]["folder"] == first.rows[1]["folder"]
        assert second.rows[2]["folder"] == first.rows[0]["folder"]
        assert (tmp_path / "folders.txt").read_text().split() == [
            row["folder"] for row in second.rows
        ]

    def test_the_manifest_tells_of_earlier_folders_too(
        self, three: list[Entry], tmp_path: Path
    ) -> None:
        export_vasp(three, tmp_path)
        fewer = export_vasp(three[:1], tmp_path)
        assert len(fewer) == 1
        assert len(rows_of(tmp_path / "manifest.csv")) == 3
        assert len((tmp_path / "folders.txt").read_text().split()) == 1

    def test_the_same_candidate_twice(self, rock_salt: Entry, tmp_path: Path) -> None:
        assert len(export_vasp([rock_salt, rock_salt], tmp_path)) == 1

    def test_names_that_meet(self, rock_salt: Entry, hematite: Entry, tmp_path: Path) -> None:
        """Ranks swap, and both would now be named alike."""
        one = replace(rock_salt, uid="a/b", formula="X", space_group=1)
        other = replace(hematite, uid="a_b", formula="X", space_group=1)
        export_vasp([one], tmp_path)
        manifest = export_vasp([other, one], tmp_path)
        assert {row["uid"]: row["folder"] for row in manifest.rows} == {
            "a/b": "0001-X-1-a_b",
            "a_b": "0001-X-1-a_b-2",
        }

    @pytest.mark.parametrize("wound", [KeyboardInterrupt, MemoryError, SystemExit])
    def test_killed_half_way(
        self,
        wound: type[BaseException],
        three: list[Entry],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        export_vasp(three, tmp_path / "whole")
        out, written = tmp_path / "out", 0
        write = Path.write_text

        def failing(self: Path, *args: Any, **options: Any) -> int:
            nonlocal written
            if self.name == "POSCAR":
                written += 1
                if written == 2:
                    raise wound
            return write(self, *args, **options)

        monkeypatch.setattr(Path, "write_text", failing)
        with pytest.raises(wound):
            export_vasp(three, out)
        monkeypatch.undo()
        complete = [p for p in out.iterdir() if p.is_dir()]
        assert [p.name for p in complete] == [entry_name(1, three[0])]
        assert [row["uid"] for row in rows_of(out / "manifest.csv")] == [three[0].uid]
        manifest = export_vasp(three, out)
        assert (manifest.written, manifest.kept) == (2, 1)
        assert snapshot(out) == snapshot(tmp_path / "whole")

    def test_half_a_folder_of_a_dead_process_is_removed(
        self, rock_salt: Entry, tmp_path: Path
    ) -> None:
        dead = subprocess.Popen(["true"])
        dead.wait()
        left = tmp_path / f".{entry_name(1, rock_salt)}.{dead.pid}.part"
        alive = tmp_path / f".{entry_name(1, rock_salt)}.{os.getppid()}.part"
        for folder in (left, alive):
            folder.mkdir()
            (folder / "INCAR").write_text("half")
        export_vasp([rock_salt], tmp_path)
        assert not left.exists()
        assert alive.exists()

    def test_disk_full(
        self, three: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Path.write_text

        def full(self: Path, *args: Any, **options: Any) -> int:
            if self.name == "KPOINTS" and "0003" in str(self):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return write(self, *args, **options)

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(LangevinXtalError, match=r"No space left.*2 of 3 candidates") as caught:
            export_vasp(three, tmp_path)
        assert not isinstance(caught.value, InputError)
        monkeypatch.undo()
        assert len(rows_of(tmp_path / "manifest.csv")) == 2
        assert not list(tmp_path.glob(".*"))
        assert export_vasp(three, tmp_path).written == 1

    def test_places_that_cannot_be_written(self, rock_salt: Entry, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for out in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(InputError, match="cannot be made"):
                export_vasp([rock_salt], out)
        with pytest.raises(InputError, match="no candidate"):
            export_vasp([], tmp_path / "out")

    def test_another_export_in_the_same_folder(self, rock_salt: Entry, tmp_path: Path) -> None:
        export_cif([rock_salt], tmp_path)
        with pytest.raises(InputError, match=r"manifest\.csv.*not of an export to vasp"):
            export_vasp([rock_salt], tmp_path)
        (tmp_path / "table").mkdir()
        (tmp_path / "table" / "manifest.csv").write_text("my,own\n1,2\n")
        with pytest.raises(InputError, match="not of an export to cif"):
            export_cif([rock_salt], tmp_path / "table")

    def test_another_process_writes_the_same(
        self, three: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, nested = vasp.VaspWriter.inputs, False

        def overtaken(self: Any, structure: Any, name: str, notes: Notes) -> Any:
            nonlocal nested
            if name.startswith("0002") and not nested:
                nested = True
                export_vasp(three, tmp_path)
            return make(self, structure, name, notes)

        monkeypatch.setattr(vasp.VaspWriter, "inputs", overtaken)
        manifest = export_vasp(three, tmp_path)
        assert (manifest.written, manifest.kept) == (1, 2)
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") or ".old" in p.name]

    def test_progress(self, three: list[Entry], tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        export_vasp(three, tmp_path, progress=lambda done, planned: seen.append((done, planned)))
        assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]

    def test_odd_names_stay_inside(self, rock_salt: Entry, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "out"
        odd = replace(rock_salt, uid="../../../évil\n x", formula="$(rm -rf /) `x`;'\"")
        folder = folder_of(export_vasp([odd], out))
        assert folder.parent == out
        assert folder.is_dir()
        assert [p.name for p in tmp_path.iterdir()] == ["deep"]
        assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
        assert rows_of(out / "manifest.csv")[0]["uid"] == "../../../évil  x"  # on one line

    @given(change=st.sampled_from(["uid", "cell", "setting"]))
    @settings(max_examples=3, deadline=None)
    def test_key(self, change: str) -> None:
        cell = (np.eye(3) * 4, np.zeros((1, 3)), np.array([11]))
        entry = Entry(uid="1", cell=cell, formula="Na", space_group=221)
        key = export_key(entry, {"a": 1})
        assert key == export_key(replace(entry, energy=-5.0), {"a": 1})
        other = {
            "uid": (replace(entry, uid="2"), {"a": 1}),
            "cell": (replace(entry, cell=(np.eye(3) * 4.0001, *cell[1:])), {"a": 1}),
            "setting": (entry, {"a": 2}),
        }[change]
        assert key != export_key(*other)


class TestJobs:
    def run(self, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        return subprocess.run(
            ["bash", str(root / "submit.sh")],
            env=clean | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_one_task_runs_in_its_folder(self, three: list[Entry], tmp_path: Path) -> None:
        command = "cp POSCAR CONTCAR && pwd > where.txt"
        manifest = export_vasp(three, tmp_path, command=command, concurrent=2)
        assert (
            subprocess.run(["bash", "-n", str(tmp_path / "submit.sh")], check=False).returncode
            == 0
        )
        assert "#SBATCH --array=1-3%2" in (tmp_path / "submit.sh").read_text()
        assert os.access(tmp_path / "submit.sh", os.X_OK)
        done = self.run(tmp_path, SLURM_ARRAY_TASK_ID="2")
        assert done.returncode == 0
        assert "no POTCAR" in done.stderr
        folder = folder_of(manifest, 2)
        assert (folder / "CONTCAR").read_text() == (folder / "POSCAR").read_text()
        assert Path((folder / "where.txt").read_text().strip()) == folder.resolve()
        assert [p.parent.name for p in tmp_path.rglob("finished")] == [folder.name]

    def test_finished_folders_are_skipped_and_failed_ones_reported(
        self, three: list[Entry], tmp_path: Path
    ) -> None:
        export_vasp(three, tmp_path, command="echo x >> log; false; echo more >> log")
        done = self.run(tmp_path)  # without SLURM: one after the other
        assert done.returncode == 1
        assert done.stderr.count("failed with status 1") == 3
        assert {p.read_text() for p in tmp_path.rglob("log")} == {"x\n"}
        export_vasp(three, tmp_path, command="echo y >> log")
        assert self.run(tmp_path).returncode == 0
        assert self.run(tmp_path).returncode == 0
        assert {p.read_text() for p in tmp_path.rglob("log")} == {"x\ny\n"}

    def test_a_copy_in_the_spool_finds_the_folders(self, rock_salt: Entry, tmp_path: Path) -> None:
        """SLURM runs a copy of the script from a folder of its own."""
        export_vasp([rock_salt], tmp_path / "out", command="touch ran")
        (tmp_path / "spool").mkdir()
        shutil.copy(tmp_path / "out" / "submit.sh", tmp_path / "spool")
        found = self.run(
            tmp_path / "spool",
            SLURM_ARRAY_TASK_ID="1",
            SLURM_SUBMIT_DIR=str(tmp_path / "out"),
        )
        assert found.returncode == 0
        assert len(list(tmp_path.rglob("ran"))) == 1
        lost = self.run(
            tmp_path / "spool", SLURM_ARRAY_TASK_ID="1", SLURM_SUBMIT_DIR=str(tmp_path)
        )
        assert lost.returncode == 1
        assert "folders.txt" in lost.stderr

    def test_many_folders_share_tasks(self, tmp_path: Path) -> None:
        names = [f"f{k}" for k in range(7)]
        for name in names:
            (tmp_path / name).mkdir()
        (tmp_path / "folders.txt").write_text("".join(f"{n}\n" for n in names))
        (tmp_path / "submit.sh").write_text(script_text(Job("x", "touch ran"), 3))
        self.run(tmp_path, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="1")
        assert sorted(p.parent.name for p in tmp_path.rglob("ran")) == ["f1", "f4"]
        for task in ("1", "3"):
            self.run(tmp_path, SLURM_ARRAY_TASK_ID=task)
        assert len(list(tmp_path.rglob("ran"))) == 7

    def test_an_edited_script_is_kept(self, three: list[Entry], tmp_path: Path) -> None:
        export_vasp(three[:1], tmp_path)
        script = tmp_path / "submit.sh"
        export_vasp(three[:2], tmp_path)  # not edited: follows
        assert "--array=1-2%" in script.read_text()
        edited = script.read_text().replace("--nodes=1", "--nodes=4")
        script.write_text(edited)
        manifest = export_vasp(three, tmp_path)
        assert script.read_text() == edited
        assert any("submit.sh was edited and is kept" in note for note in manifest.notes)
        export_vasp(three, tmp_path, force=True)
        assert "--nodes=1" in script.read_text()
        assert "--array=1-3%" in script.read_text()


class TestEspresso:
    def test_reads_back(self, three: list[Entry], tmp_path: Path) -> None:
        from ase.io import read
        from ase.io.espresso import read_fortran_namelist
        from pymatgen.io.ase import AseAtomsAdaptor

        manifest = export_qe(three, tmp_path, pseudo_name="{element}.pbe.UPF", kspacing=0.25)
        for rank, entry in enumerate(three, start=1):
            path = folder_of(manifest, rank) / "pw.in"
            atoms = read(path, format="espresso-in")
            assert same_crystal(entry.cell, AseAtomsAdaptor.get_structure(atoms), 1e-7)
            with path.open() as handle:
                data, cards = read_fortran_namelist(handle)
            assert data["control"]["calculation"] == "vc-relax"
            assert data["control"]["pseudo_dir"] == "../pseudo"
            assert data["system"]["nat"] == len(atoms)
            assert data["system"]["ibrav"] == 0
            assert data["system"]["ecutwfc"] == 60
            assert data["system"]["ecutrho"] == 480
            assert ("nspin" in data["system"]) == (26 in entry.cell[2])
            grid = next(c for k, c in enumerate(cards) if "K_POINTS" in cards[k - 1]).split()
            assert [int(n) for n in grid[:3]] == list(k_grid(np.array(atoms.cell), 0.25))
            species = [line for line in cards if line.endswith(".pbe.UPF")]
            assert len(species) == len(set(entry.cell[2]))
            assert {"ions", "cell"} <= set(data)

    def test_starting_moments(self, hematite: Entry, tmp_path: Path) -> None:
        from ase.io.espresso import read_fortran_namelist

        with (folder_of(export_qe([hematite], tmp_path)) / "pw.in").open() as handle:
            data, cards = read_fortran_namelist(handle)
        species = [line.split()[0] for line in cards if line.endswith(".upf")]
        moments = [data["system"][f"starting_magnetization({k})"] for k in (1, 2)]
        assert dict(zip(species, moments, strict=True)) == {"Fe": 0.5, "O": 0.0}

    @pytest.mark.parametrize("kspacing", [0.15, 0.2, 0.5])
    def test_k_points_are_dense_enough(self, reference: PackedDataset, kspacing: float) -> None:
        from pymatgen.core import Lattice

        for lattice in reference.lattice[::9]:
            steps = np.array(Lattice(lattice).reciprocal_lattice.abc) / k_grid(lattice, kspacing)
            assert steps.max() <= kspacing * (1 + 1e-6)
            coarser = np.maximum(np.array(k_grid(lattice, kspacing)) - 1, 1e-9)
            assert (np.array(Lattice(lattice).reciprocal_lattice.abc) / coarser > kspacing).all()

    def test_variables(self, rock_salt: Entry, tmp_path: Path) -> None:
        from ase.io.espresso import read_fortran_namelist

        texts = (
            "degauss=0.02",
            "smearing='mp'",
            "nosym=.TRUE.",
            "nbnd=20",
            "conv_thr=1d-8",
            "mixing_beta=",
        )
        overrides = dict(read_pw_variable(text) for text in texts)
        with (
            folder_of(export_qe([rock_salt], tmp_path, overrides=overrides)) / "pw.in"
        ).open() as f:
            data, _ = read_fortran_namelist(f)
        assert data["system"]["degauss"] == 0.02
        assert data["system"]["smearing"] == "mp"
        assert data["system"]["nosym"] is True
        assert data["system"]["nbnd"] == 20
        assert data["electrons"]["conv_thr"] == 1e-8
        assert "mixing_beta" not in data["electrons"]

    def test_missing_pseudopotentials_are_reported(self, rock_salt: Entry, tmp_path: Path) -> None:
        pseudo = tmp_path / "pseudo"
        pseudo.mkdir()
        (pseudo / "Na.upf").write_text("")
        manifest = export_qe([rock_salt], tmp_path / "qe", pseudo_dir=str(pseudo))
        assert [n for n in manifest.notes if "Cl.upf" in n and "Na.upf" not in n]
        assert export_qe([rock_salt], tmp_path / "other", pseudo_dir="/no/such").notes == ()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"calculation": "md"}, "vc-relax, relax, scf"),
            ({"pseudo_name": "Na.upf"}, "{element}"),
            ({"kspacing": 0.0}, "kspacing"),
            ({"ecutwfc": float("inf")}, "ecutwfc"),
            ({"overrides": {"degaus": 0.1}}, "'degaus' is not a variable"),
        ],
    )
    def test_bad_options(
        self, options: dict[str, Any], words: str, rock_salt: Entry, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=words):
            export_qe([rock_salt], tmp_path / "qe", **options)
        with pytest.raises(InputError, match="--pw"):
            read_pw_variable("degauss")


class TestPhonopy:
    def test_reads_back(self, hematite: Entry, tmp_path: Path) -> None:
        import phonopy
        from phonopy.interface.vasp import read_vasp
        from pymatgen.io.vasp import Incar, Kpoints, Poscar

        manifest = export_phonopy([hematite], tmp_path, dim=(2, 2, 1), distance=0.02)
        folder = folder_of(manifest)
        phonon = phonopy.load(folder / "phonopy_disp.yaml", produce_fc=False, log_level=0)
        perfect = read_vasp(folder / "SPOSCAR")
        assert np.allclose(phonon.supercell.cell, perfect.cell, atol=1e-9)
        assert phonon.supercell.symbols == perfect.symbols
        assert np.allclose(phonon.supercell.scaled_positions, perfect.scaled_positions, atol=1e-9)
        assert same_crystal(hematite.cell, Poscar.from_file(folder / "SPOSCAR").structure, 1e-7)
        assert same_crystal(hematite.cell, Poscar.from_file(folder / "POSCAR").structure, 1e-7)
        displaced_cells = phonon.supercells_with_displacements
        jobs = sorted(p for p in folder.iterdir() if p.is_dir())
        assert [p.name for p in jobs] == [f"disp-{k:03d}" for k in range(1, len(jobs) + 1)]
        assert len(jobs) == len(displaced_cells) == int(manifest.rows[0]["displacements"])
        for job, cell in zip(jobs, displaced_cells, strict=True):
            found = read_vasp(job / "POSCAR")
            assert found.symbols == cell.symbols
            delta = found.scaled_positions - cell.scaled_positions
            assert np.abs(delta - np.rint(delta)).max() < 1e-9
            away = found.scaled_positions - perfect.scaled_positions
            length = np.linalg.norm((away - np.rint(away)) @ perfect.cell, axis=1)
            assert (length > 1e-8).sum() == 1
            assert length.max() == pytest.approx(0.02, abs=1e-8)
            incar = Incar.from_file(job / "INCAR")
            assert (incar["IBRION"], incar["NSW"], incar["ISYM"]) == (-1, 0, 2)
            assert incar["ISMEAR"] == 0
            assert incar["EDIFF"] == 1e-7
            assert incar["LREAL"] is False
            symbols = Poscar.from_file(job / "POSCAR").structure.species
            expected = [5.0 if s.symbol == "Fe" else 0.6 for s in symbols]
            assert incar["MAGMOM"] == expected
            assert Kpoints.from_file(job / "KPOINTS").style.name == "Gamma"
        lines = (tmp_path / "folders.txt").read_text().split()
        assert lines == [f"{folder.name}/{job.name}" for job in jobs]

    def test_forces_reach_the_right_atoms(self, reference: PackedDataset, tmp_path: Path) -> None:
        """Frequencies at Γ from the folders against finite differences in the small cell."""
        import phonopy
        from ase import Atoms
        from ase.calculators.emt import EMT
        from ase.io import read

        gold = entry_of(reference, "Cu3Au (L1_2)")
        lattice = np.eye(3) * 3.75
        frac, numbers = gold.cell[1], gold.cell[2]
        assert sorted(numbers) == [29, 29, 29, 79]
        cell = (lattice, frac, numbers)
        folder = folder_of(export_phonopy([replace(gold, cell=cell)], tmp_path, dim=(2, 2, 2)))
        phonon = phonopy.load(folder / "phonopy_disp.yaml", produce_fc=False, log_level=0)
        forces = []
        for path in sorted(folder.glob("disp-*/POSCAR")):
            atoms = read(path, format="vasp")
            atoms.calc = EMT()
            forces.append(atoms.get_forces())
        phonon.forces = forces
        phonon.produce_force_constants()
        phonon.run_mesh([1, 1, 1])
        frequencies = np.sort(phonon.get_mesh_dict()["frequencies"][0])

        atoms = Atoms(numbers=numbers, scaled_positions=frac, cell=lattice, pbc=True)
        atoms.calc = EMT()
        step, hessian = 0.01, np.zeros((12, 12))
        for k in range(12):
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = EMT()
                moved.positions[k // 3, k % 3] += sign * step
                hessian[k] -= sign * moved.get_forces().ravel() / (2 * step)
        mass = np.repeat(atoms.get_masses(), 3)
        values = np.linalg.eigvalsh((hessian + hessian.T) / 2 / np.sqrt(np.outer(mass, mass)))
        thz = np.sign(values) * np.sqrt(np.abs(values)) * 15.633302
        assert np.abs(frequencies[3:] - np.sort(thz)[3:]).max() < 0.02
        assert frequencies[3:].min() > 1.0

    def test_supercells_are_large_enough(self, reference: PackedDataset) -> None:
        for name in reference.id.tolist()[::9]:
            structure = to_structure(entry_of(reference, name).cell)
            multiples = supercell_multiples(structure, 10.0)
            lattice = structure.make_supercell(multiples, in_place=False).lattice
            for k in range(3):
                a, b = (lattice.matrix[j] for j in range(3) if j != k)
                height = lattice.volume / np.linalg.norm(np.cross(a, b))
                assert height > 10.0 - 1e-4
                assert height - height / multiples[k] < 10.0

    def test_a_left_handed_cell(self, hematite: Entry, tmp_path: Path) -> None:
        import phonopy
        from phonopy.interface.vasp import read_vasp

        lattice, frac, numbers = hematite.cell
        left = replace(hematite, cell=(lattice[[1, 0, 2]], frac[:, [1, 0, 2]], numbers))
        assert np.linalg.det(left.cell[0]) < 0
        manifest = export_phonopy([left], tmp_path, dim=(1, 1, 1), cell="stored")
        folder = folder_of(manifest)
        phonon = phonopy.load(folder / "phonopy_disp.yaml", produce_fc=False, log_level=0)
        found = read_vasp(folder / "disp-001" / "POSCAR")
        assert np.linalg.det(found.cell) > 0
        expected = (phonon.supercells_with_displacements or [])[0]
        assert np.allclose(found.cell, expected.cell, atol=1e-9)
        delta = found.scaled_positions - expected.scaled_positions
        assert np.abs(delta - np.rint(delta)).max() < 1e-9

    def test_too_large(self, hematite: Entry, rock_salt: Entry, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="2×2×20 cells has 640 atoms"):
            displaced(to_structure(rock_salt.cell), (2, 2, 20), 0.01)
        with pytest.raises(LangevinXtalError, match="more than 600"):
            export_phonopy([hematite], tmp_path, dim=(9, 9, 9))

    @pytest.mark.parametrize(
        "options", [{"dim": (1, 2)}, {"dim": (0, 1, 1)}, {"min_height": -1.0}, {"distance": 2.0}]
    )
    def test_bad_options(self, options: dict[str, Any], rock_salt: Entry, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=next(iter(options))):
            export_phonopy([rock_salt], tmp_path, **options)


class TestCif:
    def test_reads_back_with_the_declared_group(
        self, reference: PackedDataset, tmp_path: Path
    ) -> None:
        from ase.io import read
        from pymatgen.core import Structure

        entries = [entry_of(reference, name) for name in reference.id.tolist()[::4]]
        manifest = export_cif(entries, tmp_path)
        assert manifest.failures == {}
        assert manifest.notes == ()
        for row, entry in zip(manifest.rows, entries, strict=True):
            path = tmp_path / row["folder"]
            assert row["symmetry"] == "declared"
            assert same_crystal(entry.cell, Structure.from_file(path), 1e-4)
            atoms = read(path)
            assert len(atoms) == len(entry.cell[2])
            assert atoms.info["spacegroup"].no == entry.space_group

    def test_declared_group_lower_than_found(self, rock_salt: Entry) -> None:
        """A supergroup of the request: the file says what was asked for."""
        from pymatgen.core import Structure

        entry = replace(rock_salt, space_group=221)
        text, origin = entry_cif(entry, 1)
        assert origin == "declared"
        assert "_space_group_IT_number 221" in text
        assert same_crystal(entry.cell, Structure.from_str(text, fmt="cif"), 1e-4)

    def test_group_lost_in_a_relaxation(self, hematite: Entry, tmp_path: Path) -> None:
        from pymatgen.core import Structure

        lattice, frac, numbers = hematite.cell
        moved = frac.copy()
        moved[0] += [0.01, 0.02, 0.005]
        lost = replace(hematite, cell=(lattice, moved, numbers))
        text, origin = entry_cif(lost, 1)
        assert origin == "P1"
        assert "_space_group_IT_number 1\n" in text
        assert same_crystal(lost.cell, Structure.from_str(text, fmt="cif"), 1e-4)
        wrong = replace(hematite, space_group=62)
        text, origin = entry_cif(wrong, 1)
        assert origin == "found"
        assert "_space_group_IT_number 167" in text
        assert same_crystal(wrong.cell, Structure.from_str(text, fmt="cif"), 1e-4)
        with pytest.warns(ExportWarning, match="lacks the group"):
            manifest = export_cif([lost, wrong], tmp_path)
        assert [row["symmetry"] for row in manifest.rows] == ["P1", "found"]

    def test_noise_is_averaged_away(self, hematite: Entry) -> None:
        lattice, frac, numbers = hematite.cell
        shaken = wrap(frac + np.random.default_rng(3).normal(0, 5e-5, frac.shape))
        sites = declared_sites((lattice, shaken, numbers), 167, 0.01)
        assert sites is not None
        assert sites.multiplicity.tolist() == [12, 18]
        group = SpaceGroup(167)
        for point, size in zip(sites.frac, sites.multiplicity, strict=True):
            images, _ = orbit(point, group.rotations, group.translations, lattice)
            assert len(images) == size
        assert declared_sites((lattice, shaken, numbers), 167, 1e-5) is None
        assert declared_sites((lattice, frac, numbers), 0) is None

    def test_a_large_p1_cell(self) -> None:
        rng = np.random.default_rng(5)
        grid = np.stack(np.meshgrid(*[np.arange(5) / 5] * 3), -1).reshape(-1, 3)
        cell = (
            np.eye(3) * 14 + rng.normal(0, 0.3, (3, 3)),
            grid + rng.normal(0, 0.02, grid.shape),
            rng.integers(3, 80, len(grid)),
        )
        entry = Entry(uid="big", cell=cell, formula="X", space_group=1)
        from pymatgen.core import Structure

        text, origin = entry_cif(entry, 1)
        assert len(Structure.from_str(text, fmt="cif")) == 125
        assert origin == "declared"

    def test_odd_texts_stay_comments(self, rock_salt: Entry) -> None:
        from pymatgen.core import Structure

        odd = replace(
            rock_salt, uid="a\ndata_b\nloop_", properties={"x\ny": "1\n_cell_length_a 99"}
        )
        text, _ = entry_cif(odd, 1)
        assert text.count("\n_cell_length_a") == 1
        assert same_crystal(odd.cell, Structure.from_str(text, fmt="cif"), 1e-4)

    def test_reruns_conflicts_and_force(self, three: list[Entry], tmp_path: Path) -> None:
        assert export_cif(three, tmp_path).written == 3
        before = snapshot(tmp_path)
        again = export_cif(three, tmp_path)
        assert (again.written, again.kept) == (0, 3)
        assert snapshot(tmp_path) == before
        changed = [three[0], replace(three[1], energy=-1.0), three[2]]
        with pytest.raises(InputError, match=r"0002.*--force"):
            export_cif(changed, tmp_path)
        assert snapshot(tmp_path) == before
        assert export_cif(changed, tmp_path, force=True).written == 1

    def test_disk_full(
        self, three: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, calls = structures.write_text, 0

        def full(path: Path, text: str) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write(path, text)

        monkeypatch.setattr(structures, "write_text", full)
        with pytest.raises(LangevinXtalError, match=r"No space left.*2 of 3"):
            export_cif(three, tmp_path)
        assert len(list(tmp_path.glob("*.cif"))) == 2


class TestXyz:
    def test_reads_back(self, three: list[Entry], tmp_path: Path) -> None:
        from ase.io import read
        from pymatgen.io.ase import AseAtomsAdaptor

        entries = [
            three[0],
            replace(three[1], energy=None, e_above_hull=None, properties={"stable": True}),
            replace(three[2], uid='odd "quoted"\n=x', provenance={"a b=c": "d\ne", "n": 3}),
        ]
        manifest = export_xyz(entries, tmp_path / "best.xyz")
        frames = read(tmp_path / "best.xyz", index=":")
        assert len(frames) == len(manifest) == 3
        for rank, (atoms, entry) in enumerate(zip(frames, entries, strict=True), start=1):
            assert same_crystal(entry.cell, AseAtomsAdaptor.get_structure(atoms), 1e-4)
            assert atoms.info["name"] == entry_name(rank, entry)
            assert atoms.info["space_group"] == entry.space_group
            assert atoms.info["structure_sha"] == cell_key(entry.cell)
        assert frames[0].info["energy_per_atom"] == entries[0].energy
        assert frames[0].info["e_above_hull"] == entries[0].e_above_hull
        assert frames[0].info["provenance_model"] == "small"
        assert "energy_per_atom" not in frames[1].info
        assert frames[1].info["stable"]
        assert frames[2].info["uid"] == 'odd "quoted" =x'
        assert frames[2].info["provenance_a_b_c"] == "d e"
        assert frames[2].info["provenance_n"] == 3

    def test_reruns_conflicts_and_force(self, three: list[Entry], tmp_path: Path) -> None:
        path = tmp_path / "best.xyz"
        assert export_xyz(three, path).written == 3
        assert export_xyz(three, path).kept == 3
        with pytest.raises(InputError, match=r"best\.xyz.*--force"):
            export_xyz(three[:2], path)
        assert export_xyz(three[:2], path, force=True).written == 2
        with pytest.raises(InputError, match="is a folder"):
            export_xyz(three, tmp_path)
        with pytest.raises(InputError, match="no folder"):
            export_xyz(three, tmp_path / "none" / "best.xyz")


def antiferromagnet() -> Entry:
    """Layers of nickel oxide, moments up and down in turn along c: twice the magnetic cell."""
    lattice = np.diag([2.95, 2.95, 16.72])
    z = np.arange(4) / 4
    frac = np.array([[0, 0, h] for h in z] + [[0.5, 0.5, h + 0.125] for h in z])
    numbers = np.array([28] * 4 + [8] * 4)
    moments = np.zeros((8, 3))
    moments[:4, 2] = [1.7, -1.7, 1.7, -1.7]
    return Entry("nio", (lattice, frac, numbers), "NiO", 123, 123, moments=moments)


class TestWhatTravels:
    """Magnetic moments and fixed atoms in every export that has a place for them."""

    def test_xyz(self, tmp_path: Path) -> None:
        entry = antiferromagnet()
        held = replace(
            entry,
            uid="held",
            fixed=np.array([[True] * 3, [False, False, True]] + [[False] * 3] * 6),
        )
        export_xyz([entry, held], tmp_path / "a.xyz")
        first, second = lx.read_structures(tmp_path / "a.xyz")
        np.testing.assert_allclose(first.moments, entry.moments)
        assert first.fixed is None
        np.testing.assert_allclose(second.moments, entry.moments)
        np.testing.assert_array_equal(second.fixed, held.fixed)

    def test_xyz_of_the_magnetic_cell(self, tmp_path: Path) -> None:
        entry = antiferromagnet()
        export_xyz([entry], tmp_path / "a.xyz", cell="primitive")
        (found,) = lx.read_structures(tmp_path / "a.xyz")
        assert sorted(found.cell[2]) == [8, 8, 28, 28]
        assert sorted(found.moments[:, 2].round(3)) == [-1.7, 0, 0, 1.7]
        plain = replace(entry, moments=None)
        export_xyz([plain], tmp_path / "b.xyz", cell="primitive")
        assert len(lx.read_structures(tmp_path / "b.xyz")[0].cell[2]) == 2

    def test_xyz_of_moments_in_all_directions(self, tmp_path: Path) -> None:
        entry = antiferromagnet()
        entry.moments[:2] = [[1, 0, 0], [0, 2, 0]]
        assert not export_xyz([entry], tmp_path / "a.xyz").notes
        (found,) = lx.read_structures(tmp_path / "a.xyz")
        np.testing.assert_allclose(found.moments, entry.moments)
        with pytest.warns(ExportWarning, match="not collinear"):
            export_xyz([entry], tmp_path / "b.xyz", cell="primitive")

    def test_constraints_along_tilted_axes(self, tmp_path: Path) -> None:
        entry = antiferromagnet()
        lattice = entry.cell[0].copy()
        lattice[1, 0] = 0.5
        fixed = np.zeros((8, 3), dtype=bool)
        fixed[0], fixed[1, 2] = True, True
        entry = replace(entry, cell=(lattice, *entry.cell[1:]), fixed=fixed)
        with pytest.warns(ExportWarning, match="tilted axes"):
            export_xyz([entry], tmp_path / "a.xyz")
        (found,) = lx.read_structures(tmp_path / "a.xyz")
        assert found.fixed.sum(axis=1).tolist() == [3, 0, 0, 0, 0, 0, 0, 0]

    def test_espresso(self, tmp_path: Path) -> None:
        from ase.io import read
        from ase.io.espresso import read_fortran_namelist

        entry = antiferromagnet()
        path = folder_of(export_qe([entry], tmp_path / "a")) / "pw.in"
        with path.open() as handle:
            data, cards = read_fortran_namelist(handle)
        kinds = [line.split()[0] for line in cards if line.endswith(".upf")]
        moment = {
            k: data["system"][f"starting_magnetization({n + 1})"] for n, k in enumerate(kinds)
        }
        assert sorted(moment.values()) == [-0.5, 0.0, 0.5]
        assert data["system"]["nat"] == 4
        held = replace(entry, fixed=np.array([[True] * 3] + [[False] * 3] * 7))
        with pytest.warns(ExportWarning, match="stored cell"):
            path = folder_of(export_qe([held], tmp_path / "b")) / "pw.in"
        atoms = read(path, format="espresso-in")
        assert len(atoms) == 8
        assert [list(c.index) for c in atoms.constraints] == [[atoms.symbols.indices()["Ni"][0]]]

    def test_phonopy(self, tmp_path: Path) -> None:
        from pymatgen.io.vasp import Incar

        folder = folder_of(export_phonopy([antiferromagnet()], tmp_path, dim=(2, 2, 1)))
        moments = Incar.from_file(next(folder.glob("disp-*/INCAR")))["MAGMOM"]
        assert sorted(moments) == [-1.7] * 4 + [0] * 8 + [1.7] * 4
        assert all(abs(m) == 1.7 for m in moments[:8])  # POSCAR's order: nickel first


class TestNotes:
    def test_kinds(self) -> None:
        notes = Notes()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for k in range(5):
                with notes.collect(f"c{k}"):
                    warnings.warn(f"value {k}.5 is odd.", UserWarning, stacklevel=1)
                    warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert notes.sentences(9) == ("value 0.5 is odd (5 of 9 candidates: c0, c1, c2 …)",)


class TestCommand:
    @pytest.fixture
    def cifs(self, three: list[Entry], tmp_path: Path) -> Path:
        """Structure files, the best last: they carry no energies, so they keep their order."""
        export_cif(three, tmp_path / "cifs")
        return tmp_path / "cifs"

    def call(self, *arguments: Any) -> Any:
        from langevin_xtal.cli import cli, run  # noqa: F401

        return CliRunner().invoke(export_command, [str(a) for a in arguments])

    def test_vasp(self, cifs: Path, tmp_path: Path) -> None:
        out = tmp_path / "vasp"
        arguments = ("vasp", cifs, "--top", 2, "--out", out, "--set", "MPStaticSet")
        done = self.call(*arguments, "--incar", "ENCUT=555", "--command", "true")
        assert done.exit_code == 0, done.output
        assert "2 candidates" in done.stdout
        assert "2 written" in done.stdout
        assert f"cd {out} && sbatch submit.sh" in done.stdout
        assert done.stderr.count("POTCAR.spec") == 1
        assert len(list(out.glob("*/INCAR"))) == 2
        assert all("ENCUT = 555" in p.read_text() for p in out.glob("*/INCAR"))
        again = self.call(*arguments, "--incar", "ENCUT=555", "--command", "true")
        assert "0 written, 2 there already" in again.stdout
        conflict = self.call(*arguments)
        assert isinstance(conflict.exception, InputError)
        assert self.call(*arguments, "--force").exit_code == 0

    def test_the_others(self, cifs: Path, tmp_path: Path) -> None:
        assert self.call("qe", cifs, "--out", tmp_path / "qe", "--pw", "nbnd=9").exit_code == 0
        assert len(list(tmp_path.glob("qe/*/pw.in"))) == 3
        one = next(cifs.glob("0001*.cif"))
        ph = self.call("phonopy", one, "--out", tmp_path / "ph", "--dim", "1,1,1")
        assert ph.exit_code == 0, ph.output
        assert len(list(tmp_path.glob("ph/*/phonopy_disp.yaml"))) == 1
        assert self.call("xyz", cifs, "--out", tmp_path / "best.xyz").exit_code == 0
        two = self.call("cif", *sorted(cifs.glob("*.cif"))[:2], "--out", tmp_path / "again")
        assert two.exit_code == 0
        assert len(list((tmp_path / "again").glob("*.cif"))) == 2

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("vasp", "--set", "Nope"), "input set 'Nope'"),
            (("vasp", "--incar", "ENCUT"), "--incar"),
            (("phonopy", "--dim", "2,2"), "--dim"),
            (("phonopy", "--dim", "2,2,x"), "--dim"),
            (("qe", "--pw", "x=1"), "'x'"),
            (("qe", "--kspacing", "nan"), "kspacing"),
        ],
    )
    def test_bad_input(
        self, arguments: Sequence[str], words: str, cifs: Path, tmp_path: Path
    ) -> None:
        done = self.call(arguments[0], cifs, "--out", tmp_path / "out", *arguments[1:])
        assert isinstance(done.exception, InputError)
        assert words in str(done.exception)
        assert not list(tmp_path.glob("out/*"))

    def test_missing_source(self, tmp_path: Path) -> None:
        done = self.call("vasp", tmp_path / "none.db", "--out", tmp_path / "out")
        assert isinstance(done.exception, InputError)
        assert self.call("vasp", "--out", tmp_path / "out").exit_code == 2

    def test_failures_end_with_an_error(
        self, cifs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from langevin_xtal.export import espresso

        write = espresso.pw_input

        def failing(structure: Any, options: Any) -> str:
            if "Fe" in structure.symbol_set:
                raise ValueError("no such thing\nmore")
            return write(structure, options)

        monkeypatch.setattr(espresso, "pw_input", failing)
        done = self.call("qe", cifs, "--out", tmp_path / "qe")
        assert isinstance(done.exception, LangevinXtalError)
        assert not isinstance(done.exception, InputError)
        assert done.stderr.count("ValueError: no such thing") == 2
        assert len(list(tmp_path.glob("qe/*/pw.in"))) == 1
        assert len(rows_of(tmp_path / "qe" / folders.MANIFEST)) == 1
