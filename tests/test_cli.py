"""The command line: exit codes, one sentence per bad input, the same command the same files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase
import ase.io
import click
import gemmi
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from safetensors.torch import save_file
from torch import ones

from langevin_xtal.cli import COMMANDS, options, run, types
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError, LangevinXtalError, SamplingError
from langevin_xtal.model import network as network_module
from langevin_xtal.model.checkpoint import load_model
from langevin_xtal.model.groups import parse_groups
from langevin_xtal.version import __version__
from tests.conftest import TINY

LEVELS = ["--levels", "4", "--threads", "1"]
LOOSE = ["--min-distance", "0.05"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must fail with exit code 2 and one line that holds some words."""

    def check(arguments: list[str], *words: str) -> str:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.err.startswith("Error: ")
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
        assert len(captured.err) < 600
        for word in words:
            assert word in captured.err
        return captured.err

    return check


@pytest.fixture
def sampled(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Sample into a folder; what was printed."""

    def go(out: Path, *arguments: str, code: int = 0) -> str:
        command = ["sample", "--model", str(tiny_path), "--out", str(out), *LEVELS, *LOOSE]
        assert run([*command, *arguments]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return go


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "candidates.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


class TestHelp:
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_of_the_program(self, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run([flag]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)
        assert "Example" in out

    @pytest.mark.parametrize(
        "command",
        [
            ["sample"],
            ["train"],
            ["data"],
            ["data", "prepare"],
            ["data", "info"],
            ["model", "info"],
        ],
    )
    def test_of_commands(self, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run([*command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "Usage: langevin-xtal " + " ".join(command) in out
        if command != ["data"]:
            assert f"langevin-xtal {command[0]}" in out.split("Example", 1)[1]

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["--version"]) == 0
        assert __version__ in capsys.readouterr().out

    def test_nothing_asked(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run([]) == 0
        assert "Usage" in capsys.readouterr().out

    def test_is_fast_and_light(self) -> None:
        code = (
            "import sys; from langevin_xtal.cli import run; run(['--help']);"
            "print(sorted({'torch', 'pymatgen', 'ase', 'spglib', 'numba'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_sampling_imports_little(tmp_path: Path) -> None:
    """A cold start is mostly imports: those that sampling does not need are not made."""
    heavy = {"pymatgen", "pandas", "matplotlib", "scipy", "sympy", "numba", "ase", "phonopy"}
    heavy |= {"gemmi", "networkx", "chgnet", "torch_geometric", "torch._dynamo"}
    code = (
        "import sys; from langevin_xtal.cli import run;"
        "code = run('sample --elements Cu,Si,K --sg 62 --n 1 --out'.split() + sys.argv[1:]);"
        f"print(code, sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []"


class TestBadRequests:
    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["--elements", "Xx", "--sg", "62"], "'Xx'"),
            (["--elements", "cu", "--sg", "62"], "did you mean Cu"),
            (["--elements", "Cu,Cu", "--sg", "62"], "Cu is given twice"),
            (["--elements", "", "--sg", "62"], "no elements"),
            (["--elements", ",", "--sg", "62"], "no elements"),
            (["--elements", "X", "--sg", "62"], "'X'"),
            (["--elements", "Cu", "--sg", "0"], "group 0"),
            (["--elements", "Cu", "--sg", "231"], "231"),
            (["--elements", "Cu", "--sg", "Pnmaa"], "'Pnmaa'"),
            (["--elements", "Cu", "--sg", "-5"], "-5"),
            (["--elements", "Cu", "--sg", ""], "no space group"),
            (["--elements", "Cu", "--sg", ","], "no space group"),
            (["--elements", "Cu", "--sg", "70-60"], "70-60"),
            (["--elements", "Cu", "--sg", "225-240"], "240"),
            (["--elements", "Cu", "--sg", "6²"], "6²"),
            (["--elements", "Cu", "--sg", "Pn\nmqq"], "Pn"),
            (["--sites", "Cu:0", "--sg", "62"], "Cu"),
            (["--sites", "Cu:-1", "--sg", "62"], "-1"),
            (["--sites", "Cu", "--sg", "62"], "'Cu'"),
            (["--sites", "Cu:x", "--sg", "62"], "'Cu:x'"),
            (["--sites", "Cu:1.5", "--sg", "62"], "'Cu:1.5'"),
            (["--sites", "Cu:1,Cu:2", "--sg", "62"], "Cu is given twice"),
            (["--sites", "Cu:" + "9" * 5000, "--sg", "62"], "Cu:2"),
            (["--sites", "Cu:1000", "--sg", "62"], "1000"),
            (["--sites", "", "--sg", "62"], "no sites"),
            (["--sites", "Xx:1", "--sg", "62"], "'Xx'"),
            (["--sites", "C\nu:1", "--sg", "62"], "is not an element"),
            (["--sg", "62"], "--sites, --de-novo and --from-structure; none given"),
            (["--elements", "Cu", "--sites", "Cu:1", "--sg", "62"], "--elements and --sites"),
            (["--elements", "Cu", "--formula", "Cu", "--sg", "62"], "--formula and --elements"),
            (["--de-novo", "--elements", "Cu"], "--elements and --de-novo"),
            (["--formula", "Cu", "--atoms", "2", "--z", "3", "--sg", "225"], "contradicts"),
            (["--elements", "Cu", "--atoms", "2", "--sg", "225"], "--formula"),
            (["--formula", "Cu", "--fix-lattice", "3,3,3"], "--sg is missing"),
            (["--sites", "Cu:1", "--from-structure", "x.cif"], "--sites and --from-structure"),
            (["--elements", "Cu"], "--sg"),
            (["--formula", "Cu"], "--sg"),
            (["--formula", "", "--sg", "62"], "''"),
            (["--formula", "cu2", "--sg", "62"], "'cu2'"),
            (["--formula", "Cu2K(Si", "--sg", "62"], "Cu2K(Si"),
            (["--formula", "Cu0", "--sg", "62"], "0 Cu"),
            (["--formula", "Cu2Xx", "--sg", "62"], "'Xx'"),
            (["--formula", "Cu" + "9" * 400, "--sg", "62"], "Cu"),
            (["--formula", "Cu2KSi", "--z", "3", "--sg", "62"], "4 or 8 atoms"),
            (["--formula", "Cu2KSi", "--z", "3", "--sg", "62"], "Z = 4"),
            (["--formula", "Cu2KSi", "--z", "3", "--sg", "62,61"], "none of the 2 groups"),
            (["--formula", "Cu2KSi", "--z", "400", "--sg", "62"], "1600 atoms"),
            (["--formula", "Cu2KSi", "--z", "0", "--sg", "62"], "--z"),
            (["--sites", "Cu:1", "--z", "4", "--sg", "62"], "--formula"),
            (["--sites", "Cu:1", "--sg", "62", "--noise", "0.2"], "--from-structure"),
            (["--from-structure", "none.cif", "--noise", "0"], "--noise"),
            (["--from-structure", "none.cif"], "none.cif"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-lattice", "5,6"], "a,b,c"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-lattice", "5,6,-7"], "a,b,c"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-lattice", "5,6,x"], "'5,6,x'"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-lattice", "5,6,1/0"], "'5,6,1/0'"),
            (["--sites", "Cu:1", "--sg", "225", "--fix-lattice", "5,5,6"], "cubic"),
            (["--sites", "Cu:1", "--sg", "14", "--fix-lattice", "5,5,6"], "angles"),
            (["--sites", "Cu:1", "--sg", "1", "--fix-lattice", "5,5,6,10,20,90"], "no cell"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", "Cu:0,0"], "'Cu:0,0'"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", "Cu"], "'Cu'"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", ";"], "no site"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", "Cu:0,0,nan"], "nan"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", "Xx:0,0,0"], "'Xx'"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", "Si:0,0,0"], "Si"),
            (["--sites", "Cu:1", "--sg", "62", "--fix-sites", "Cu:0,0,0;Cu:0,0,1/2"], "1 Cu"),
            (["--formula", "Cu", "--sg", "225", "--fix-sites", "Cu:.1,.2,.3"], "beside the fixed"),
            (["--elements", "Cu", "--sg", "62", "--fix-sites", "Cu:0,0,0"], "--fix-sites"),
            (["--sites", "Cu:1", "--sg", "62", "--setting", "2"], "--setting"),
            (
                ["--sites", "Cu:1", "--sg", "227", "--fix-sites", "Cu:0,0,0", "--setting", "3"],
                "give one of 1, 2",
            ),
            (
                ["--sites", "Cu:1", "--sg", "14", "--fix-lattice", "5,6,7", "--setting", "P21/n"],
                "lengths and angles",
            ),
            (
                [
                    "--sites",
                    "Cu:1",
                    "--sg",
                    "166",
                    "--fix-lattice",
                    "5,5,7,90,90,120",
                    "--setting",
                    "R",
                ],
                "not the shape",
            ),
            (["--elements", "Cu", "--sg", "62", "--start", "zero"], "zero"),
            (["--elements", "Cu", "--sg", "62", "--proposals", "0"], "--proposals"),
            (["--elements", "Cu", "--sg", "62", "--proposal-noise", "0"], "--proposal-noise"),
            (["--elements", "Cu", "--sg", "62", "--proposal-temperature", "0"], "temperature"),
            (["--elements", "Cu", "--sg", "62", "--n", "-3"], "--n"),
            (["--elements", "Cu", "--sg", "62", "--n", "0"], "--n"),
            (["--elements", "Cu", "--sg", "62", "--n", "many"], "many"),
            (["--elements", "Cu", "--sg", "62", "--seed", "x"], "--seed"),
            (["--elements", "Cu", "--sg", "62", "--levels", "1"], "--levels"),
            (["--elements", "Cu", "--sg", "62", "--steps", "5"], "langevin"),
            (["--elements", "Cu", "--sg", "62", "--merge", "-1"], "--merge"),
            (["--elements", "Cu", "--sg", "62", "--min-distance", "nan"], "min_distance"),
            (["--elements", "Cu", "--sg", "62", "--format", "pdb"], "pdb"),
            (["--elements", "Cu", "--sg", "62", "--sampler", "ddim"], "ddim"),
            (["--elements", "Cu", "--sg", "62", "--device", "tpu"], "tpu"),
            (["--elements", "Cu", "--sg", "62", "--colour", "red"], "--colour"),
            (["--elements", "Cu", "--sg", "62", "surplus"], "surplus"),
        ],
    )
    def test_sample(
        self, refused: Any, tiny_path: Path, tmp_path: Path, arguments: list[str], word: str
    ) -> None:
        out = tmp_path / "out"
        refused(["sample", "--model", tiny_path, "--out", out, *arguments], word)
        assert not out.exists()

    @pytest.mark.parametrize("command", [["fly"], ["data", "fly"], ["model", "fly"], ["--fly"]])
    def test_unknown_commands(self, refused: Any, command: list[str]) -> None:
        refused(command, "fly")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["--steps", "0"], "--steps"),
            (["--batch-size", "-1"], "--batch-size"),
            (["--learning-rate", "0"], "--learning-rate"),
            (["--learning-rate", "nan"], "learning_rate"),
            (["--size", "huge"], "huge"),
            (["--target", "moving"], "moving"),
            (["--device", "tpu"], "tpu"),
        ],
    )
    def test_train(self, refused: Any, tmp_path: Path, arguments: list[str], word: str) -> None:
        refused(["train", "--out", tmp_path / "run", *arguments], word)
        assert not (tmp_path / "run").exists()


class TestBadFiles:
    REQUEST = ("--elements", "Cu", "--sg", "62", "--n", "1")

    @pytest.mark.parametrize("kind", ["file", "below a file", "proc"])
    def test_folders_that_cannot_be_written(
        self, refused: Any, tiny_path: Path, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "file").write_text("mine")
        out = {
            "file": tmp_path / "file",
            "below a file": tmp_path / "file" / "deeper",
            "proc": Path("/proc/langevin-xtal"),
        }[kind]
        refused(["sample", "--model", tiny_path, "--out", out, *self.REQUEST], str(out))
        refused(["train", "--steps", "1", "--out", out], str(out))
        assert (tmp_path / "file").read_text() == "mine"

    def test_models(self, refused: Any, tiny_path: Path, tmp_path: Path) -> None:
        cut, foreign = tmp_path / "cut.safetensors", tmp_path / "foreign.safetensors"
        cut.write_bytes(tiny_path.read_bytes()[:-1000])
        save_file({"weight": ones(3)}, foreign)
        text = tmp_path / "text.safetensors"
        text.write_text("weights")
        for path, word in ((cut, "truncated"), (foreign, "not written by"), (text, "not a safe")):
            command = ["sample", "--out", tmp_path / "out", *self.REQUEST]
            refused([*command, "--model", path], str(path), word)
            refused(["model", "info", path], str(path), word)
        refused(["model", "info", "no-such-model"], "'no-such-model'", "shipped")
        refused(["model", "info", tmp_path / "none.safetensors"], "does not exist")
        refused(["model", "info", tmp_path], "is not a file")
        assert not (tmp_path / "out").exists()

    def test_packed_files(self, refused: Any, reference: PackedDataset, tmp_path: Path) -> None:
        whole = reference.save(tmp_path / "whole.lxd")
        cut, foreign = tmp_path / "cut.lxd", tmp_path / "foreign.lxd"
        cut.write_bytes(whole.read_bytes()[:-500])
        foreign.write_text("Cu Si K")
        for path, word in ((cut, "truncated"), (foreign, "not a packed dataset")):
            refused(["data", "info", path], str(path), word)
            refused(["train", "--data", path, "--out", tmp_path / "run"], str(path), word)
            refused(
                ["train", "--data", whole, "--validation", path, "--out", tmp_path / "run"], word
            )
        refused(["data", "info", tmp_path / "none.lxd"], "none.lxd")
        assert not (tmp_path / "run").exists()

    def test_partial_occupancies(self, refused: Any, tmp_path: Path) -> None:
        source, out = tmp_path / "alloy.cif", tmp_path / "alloy.lxd"
        source.write_text(
            "data_alloy\n_cell_length_a 3.6\n_cell_length_b 3.6\n_cell_length_c 3.6\n"
            "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
            "_symmetry_space_group_name_H-M 'P 1'\nloop_\n_atom_site_label\n"
            "_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
            "_atom_site_fract_z\n_atom_site_occupancy\nCu1 Cu 0 0 0 0.5\nAu1 Au 0 0 0 0.5\n"
        )
        command = ["data", "prepare", source, "--out", out, "--workers", "1"]
        refused(command, "alloy.cif", "occupanc")
        assert not out.exists()
        rejects = (tmp_path / "alloy.lxd.rejects.csv").read_text()
        assert "occupanc" in rejects
        assert len(rejects.splitlines()) == 2

    def test_damaged_tables(
        self, refused: Any, sampled: Any, tiny_path: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        arguments = ["--sites", "Na:1,Cl:1", "--sg", "225", "--n", "2"]
        sampled(out, *arguments)
        path = out / "candidates.csv"
        sound = path.read_text()
        command = ["sample", "--model", tiny_path, "--out", out, *LEVELS, *LOOSE, *arguments]
        for damaged in ("", "a,b\n1,2\n", sound.replace("\n0,", "\nzero,"), sound[:-30], "\0"):
            path.write_text(damaged)
            refused(command, str(path), "damaged")
        path.write_bytes(b"\xff\xfe\x00")
        refused(command, str(path), "damaged")
        (out / "run.json").write_text("[" * 100_000)
        refused(command, "another run")


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (InputError("bad"), 2, "Error: bad\n"),
            (LangevinXtalError("broken"), 1, "Error: broken\n"),
            (SamplingError("lost"), 1, "Error: lost\n"),
            (OSError(28, "No space left on device", "/x/y"), 1, "Error: /x/y: No space left"),
            (PermissionError(13, "Permission denied", "/x/y"), 2, "Error: /x/y cannot be"),
            (InputError("two\nlines\x1b[31m"), 2, "Error: two lines?[31m\n"),
            (click.UsageError("strange"), 2, "Error: strange\n"),
        ],
    )
    def test_failures(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: Exception,
        code: int,
        text: str,
    ) -> None:
        self._raise(monkeypatch, error)
        assert run(["model", "info", "small"]) == code
        err = capsys.readouterr().err
        assert err.startswith(text)
        assert err.count("\n") == 1

    def test_interrupt(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._raise(monkeypatch, KeyboardInterrupt())
        assert run(["model", "info", "small"]) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_a_mistake_of_ours_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._raise(monkeypatch, ZeroDivisionError("ours"))
        with pytest.raises(ZeroDivisionError):
            run(["model", "info", "small"])

    @staticmethod
    def _raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        def fail(name: str) -> None:
            raise error

        monkeypatch.setattr("langevin_xtal.model.checkpoint.load_model", fail)


class TestSample:
    SITES = ("--sites", "Na:1,Cl:1", "--sg", "225,221", "--seed", "4")

    def test_the_same_command_gives_the_same_files(self, sampled: Any, tmp_path: Path) -> None:
        out = sampled(tmp_path / "a", *self.SITES, "--n", "6")
        sampled(tmp_path / "b", *self.SITES, "--n", "6", "--batch-size", "2", "--threads", "2")
        a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
        assert a == b
        assert {"run.json", "candidates.csv", "rejects.csv"} < set(a)
        rows = table(tmp_path / "a")
        assert len(rows) >= 4
        assert {r["file"] for r in rows} == {n for n in a if n.endswith(".cif")}
        assert f"{len(rows)} of 6 candidates in {tmp_path / 'a'}" in out
        for row in rows:
            assert row["group"] == ("225", "221")[int(row["index"]) % 2]
            assert row["symmetry"] in ("as requested", "supergroup")

    def test_again_in_the_same_folder_changes_nothing(self, sampled: Any, tmp_path: Path) -> None:
        sampled(tmp_path, *self.SITES, "--n", "4")
        before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.cif")}
        sampled(tmp_path, *self.SITES, "--n", "4")
        after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.cif")}
        assert before == after

    def test_more_candidates_keep_the_first(self, sampled: Any, tmp_path: Path) -> None:
        sampled(tmp_path / "a", *self.SITES, "--n", "3")
        first = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("*.cif")}
        assert first
        sampled(tmp_path / "a", *self.SITES, "--n", "7")
        sampled(tmp_path / "b", *self.SITES, "--n", "7")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        assert all((tmp_path / "a" / n).stat().st_mtime_ns == t for n, t in first.items())

    def test_a_lost_file_is_sampled_again(self, sampled: Any, tmp_path: Path) -> None:
        sampled(tmp_path, *self.SITES, "--n", "4")
        before = contents(tmp_path)
        next(tmp_path.glob("*.cif")).unlink()
        sampled(tmp_path, *self.SITES, "--n", "4")
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        "change",
        [
            ["--sg", "221"],
            ["--seed", "5"],
            ["--sites", "Na:1,Br:1"],
            ["--merge", "0.2"],
            ["--format", "xyz"],
            ["--levels", "5"],
            ["--attempts", "2"],
            ["--positions", "free"],
            ["--start", "noise"],
            ["--proposals", "2"],
            ["--fix-sites", "Na:0,0,0"],
            ["--fix-lattice", "5,5,5"],
        ],
    )
    def test_a_folder_with_another_run_is_refused(
        self, refused: Any, sampled: Any, tiny_path: Path, tmp_path: Path, change: list[str]
    ) -> None:
        sampled(tmp_path, *self.SITES, "--n", "2")
        before = contents(tmp_path)
        command = ["sample", "--model", tiny_path, "--out", tmp_path, *LEVELS, *LOOSE]
        refused([*command, *self.SITES, "--n", "2", *change], str(tmp_path), "another run")
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(("kind", "suffix"), [("xyz", ".xyz"), ("poscar", ".vasp")])
    def test_other_formats(self, sampled: Any, tmp_path: Path, kind: str, suffix: str) -> None:
        sampled(tmp_path / "cif", *self.SITES, "--n", "4")
        sampled(tmp_path / kind, *self.SITES, "--n", "4", "--format", kind)
        rows = table(tmp_path / "cif")
        assert rows
        for row in rows:
            name = row["file"].replace(".cif", suffix)
            found = ase.io.read(tmp_path / kind / name)
            wanted = ase.io.read(tmp_path / "cif" / row["file"])
            assert sorted(found.numbers) == sorted(wanted.numbers)
            assert found.pbc.all()
            assert found.get_volume() == pytest.approx(wanted.get_volume(), rel=1e-5)
            a, b = (np.sort(x.get_all_distances(mic=True).ravel()) for x in (found, wanted))
            np.testing.assert_allclose(a, b, atol=1e-3)
            if kind == "xyz":
                assert found.info["index"] == int(row["index"])
                assert found.info["seed"] == 4

    def test_defaults_are_those_of_the_library(self) -> None:
        """``--help`` must not import torch, so the command repeats them."""
        from langevin_xtal.cli.sample import sample
        from langevin_xtal.sampling.sample import SampleOptions

        library = SampleOptions()
        for parameter in sample.params:
            if hasattr(library, parameter.name or "") and parameter.name not in (
                "sampler",
                "preset",
            ):
                assert parameter.default == getattr(library, parameter.name), parameter.name
        of = {parameter.name: parameter.default for parameter in sample.params}
        assert of["merge"] == library.postprocess.merge
        assert of["min_distance"] == library.postprocess.min_distance
        assert of["proposals"] == library.proposals

    def test_elements_alone(self, sampled: Any, tmp_path: Path) -> None:
        sampled(tmp_path, "--elements", "Cu,O", "--sg", "62-63", "--n", "4", "--attempts", "1")
        with (tmp_path / "rejects.csv").open(newline="") as handle:
            lost = list(csv.DictReader(handle))
        requests = [r["request"] for r in (*table(tmp_path), *lost)]
        assert len(requests) == 4
        assert all("Cu:" in r and "O:" in r for r in requests)
        record = json.loads((tmp_path / "run.json").read_text())
        assert record["elements"] == ["Cu", "O"]
        assert record["groups"] == [62, 63]

    def test_rejections_are_counted(self, sampled: Any, tmp_path: Path) -> None:
        arguments = ("--sites", "Na:1", "--sg", "225", "--n", "3", "--min-distance", "50")
        out = sampled(tmp_path, *arguments, "--attempts", "2", code=1)
        assert "0 of 3 candidates" in out
        assert "3 given up after 2 attempts" in out
        assert "6 attempts rejected: overlap" in out
        again = sampled(tmp_path, *arguments, "--attempts", "2", code=1)
        assert again.count("6 attempts rejected") == 1

    def test_picture(self, sampled: Any, tmp_path: Path) -> None:
        sampled(tmp_path, *self.SITES, "--n", "2", "--picture")
        assert (tmp_path / "candidates.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def test_langevin(self, sampled: Any, tmp_path: Path) -> None:
        arguments = ("--sampler", "langevin", "--steps", "2", "--n", "2")
        sampled(tmp_path, *self.SITES, *arguments)
        record = json.loads((tmp_path / "run.json").read_text())
        assert "AnnealedLangevin(levels=4, steps=2" in record["sampler"]


class TestExact:
    """``--formula``: what was asked for is what comes, in every file."""

    @staticmethod
    def atoms(folder: Path) -> list[Any]:
        return [ase.io.read(folder / row["file"]) for row in table(folder)]

    def test_composition_is_exact(self, sampled: Any, tmp_path: Path) -> None:
        sampled(tmp_path, "--formula", "Cu2KSi", "--z", "4", "--sg", "62", "--n", "4")
        found = self.atoms(tmp_path)
        assert found
        for atoms in found:
            assert np.bincount(atoms.numbers)[[14, 19, 29]].tolist() == [4, 4, 8]
            assert len(atoms) == 16
        for row in table(tmp_path):
            assert row["request"] == "Cu2KSi, Z = 4, in Pnma (62)"
            sizes = dict(zip(*[iter(row["sites"].split())] * 2, strict=True))
            totals = {s: sum(int(w[:-1]) for w in text.split("+")) for s, text in sizes.items()}
            names = set(row["sites"].replace("+", " ").split())
            assert names <= {"Cu", "K", "Si", "4a", "4b", "4c", "8d"}
            assert totals == {"Cu": 8, "K": 4, "Si": 4}

    def test_each_group_has_its_own_z(self, sampled: Any, tmp_path: Path, capsys: Any) -> None:
        """And those that cannot have it are skipped, in one line."""
        command = ["--formula", "NaCl", "--sg", "2,14,225,221", "--n", "8"]
        sampled(tmp_path / "a", *command)
        wanted = {"2": 2, "14": 4, "225": 8, "221": 2}
        rows = table(tmp_path / "a")
        assert {r["group"] for r in rows} == set(wanted)
        for row, atoms in zip(rows, self.atoms(tmp_path / "a"), strict=True):
            assert row["atoms"] == str(len(atoms)) == str(wanted[row["group"]])
            assert (atoms.numbers == 11).sum() == (atoms.numbers == 17).sum()
            assert row["group"] == ("2", "14", "225", "221")[int(row["index"]) % 4]

    def test_groups_that_do_not_fit(
        self, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["sample", "--model", str(tiny_path), "--out", str(tmp_path), *LEVELS, *LOOSE]
        command += ["--formula", "NaCl", "--z", "1", "--sg", "221-225,1,3", "--n", "3"]
        assert run(command) == 0
        error = capsys.readouterr().err
        assert error == "skipped 4 of 7 groups that do not fit: 222-225\n"
        assert {row["group"] for row in table(tmp_path)} <= {"221", "1", "3"}
        assert json.loads((tmp_path / "run.json").read_text())["groups"] == [221, 1, 3]

    def test_fixed_cell_and_site(self, sampled: Any, tmp_path: Path) -> None:
        cell = (5.1, 6.2, 7.3, 90.0, 103.0, 90.0)
        arguments = ["--sites", "Si:1,O:2", "--sg", "14", "--n", "2"]
        arguments += ["--fix-lattice", ",".join(map(str, cell)), "--fix-sites", "Si:.1,1/5,-0.3"]
        sampled(tmp_path, *arguments, "--format", "xyz")
        found = self.atoms(tmp_path)
        assert found
        for atoms in found:
            np.testing.assert_allclose(atoms.cell.cellpar(), cell, atol=1e-6)
            gap = atoms.get_scaled_positions()[atoms.numbers == 14] - (0.1, 0.2, 0.7)
            gap -= np.rint(gap)
            assert np.abs(gap).max(axis=1).min() < 1e-6

    def test_fixed_cell_and_site_of_another_setting(self, sampled: Any, tmp_path: Path) -> None:
        """P21/n: the fixed atoms are those that gemmi's operations of it make."""
        cell, point = (5.1, 6.2, 7.3, 90.0, 103.0, 90.0), np.array([0.1, 0.2, 0.7])
        arguments = ["--sites", "Si:1,O:1", "--sg", "14", "--n", "1", "--format", "xyz"]
        arguments += ["--fix-lattice", ",".join(map(str, cell)), "--fix-sites", "Si:.1,1/5,-0.3"]
        sampled(tmp_path, *arguments, "--setting", "P21/n")
        (found,) = self.atoms(tmp_path)
        operations = gemmi.find_spacegroup_by_name("P 1 21/n 1").operations()
        there = Structure(
            Lattice.from_parameters(*cell),
            ["Si"] * 4,
            [operation.apply_to_xyz(point.tolist()) for operation in operations],
        )
        silicon = found[found.numbers == 14]
        here = Structure(Lattice(silicon.cell.array), ["Si"] * 4, silicon.get_scaled_positions())
        assert here.volume == pytest.approx(there.volume, rel=1e-6)
        matcher = StructureMatcher(scale=False, primitive_cell=False, ltol=1e-4, angle_tol=0.01)
        largest = matcher.get_rms_dist(here, there)
        assert largest is not None
        assert largest[1] < 1e-4
        assert not np.allclose(silicon.cell.cellpar(), cell, atol=0.1)

    def test_fixed_site_of_the_other_origin(
        self, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """8a is at (1/8, 1/8, 1/8) in choice 2 of Fd-3m, and at the origin here."""
        command = ["sample", "--model", str(tiny_path), "--out", str(tmp_path), *LEVELS, *LOOSE]
        command += ["--sites", "Si:1", "--sg", "227", "--n", "1", "--fix-lattice", "5.4,5.4,5.4"]
        assert run([*command, "--fix-sites", "Si:1/8,1/8,1/8", "--setting", "2"]) == 0
        note = "Note: transformed from F d -3 m (227, choice 2) to F d -3 m (227, choice 1)\n"
        assert note in capsys.readouterr().err
        (row,) = table(tmp_path)
        assert row["sites"] == "Si 8a"
        assert "\nSi1 Si 8 a " in (tmp_path / row["file"]).read_text()
        found = Structure.from_file(tmp_path / row["file"])
        nearest = min(n.nn_distance for n in found.get_neighbors(found[0], 3.0))
        assert nearest == pytest.approx(5.4 * 3**0.5 / 4, abs=1e-6)

    def test_fixed_site_of_a_formula(self, sampled: Any, tmp_path: Path) -> None:
        arguments = ["--formula", "NaCl", "--sg", "225", "--n", "2", "--format", "xyz"]
        sampled(tmp_path, *arguments, "--fix-sites", "Na:1/2,1/2,1/2")
        found = self.atoms(tmp_path)
        assert found
        for atoms in found:
            where = {z: atoms.get_scaled_positions()[atoms.numbers == z] for z in (11, 17)}
            assert (np.abs(where[11] - 0.5).max(axis=1) < 1e-6).any()
            assert {z: len(points) for z, points in where.items()} == {11: 4, 17: 4}


class TestFromStructure:
    @pytest.fixture
    def rutile(self, tmp_path: Path) -> Path:
        frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.305, 0.305, 0], [0.695, 0.695, 0],
                         [0.195, 0.805, 0.5], [0.805, 0.195, 0.5]])  # fmt: skip
        atoms = ase.Atoms("Ti2O4", scaled_positions=frac, cell=(4.59, 4.59, 2.96), pbc=True)
        ase.io.write(tmp_path / "rutile.cif", atoms)
        return tmp_path / "rutile.cif"

    def test_keeps_sites_and_group(self, sampled: Any, rutile: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        printed = sampled(out, "--from-structure", str(rutile), "--noise", "0.05", "--n", "4")
        assert "4 of 4" in printed
        for row in table(out):
            assert (row["formula"], row["group"], row["sites"]) == ("TiO2", "136", "Ti 2a O 4f")
        record = json.loads((out / "run.json").read_text())
        assert record["noise"] == 0.05
        assert record["groups"] == [136]

    def test_another_group(self, refused: Any, tiny_path: Path, rutile: Path) -> None:
        command = ["sample", "--model", tiny_path, "--from-structure", rutile]
        refused([*command, "--sg", "62"], "P4_2/mnm (136)", "Pnma (62)")
        refused([*command, "--noise", "2.5"], "--noise", "2 Å")

    def test_subgroup_of_the_same_cell(self, sampled: Any, rutile: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        sampled(out, "--from-structure", str(rutile), "--sg", "1", "--noise", "0.1", "--n", "2")
        for row in table(out):
            assert row["sites"] == "Ti 1a+1a O 1a+1a+1a+1a"

    def test_another_structure_is_another_run(
        self, sampled: Any, refused: Any, tiny_path: Path, rutile: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        sampled(out, "--from-structure", str(rutile), "--n", "1")
        command = ["sample", "--model", tiny_path, "--out", out, *LEVELS, *LOOSE, "--n", "1"]
        command += ["--from-structure", rutile]
        refused([*command, "--noise", "0.4"], "another run")
        text = rutile.read_text()
        rutile.write_text(text.replace("4.59", "4.60"))
        assert rutile.read_text() != text
        refused(command, "another run")


class TestInterrupted:
    SITES = ("--sites", "Na:1,Cl:1", "--sg", "225", "--n", "8", "--batch-size", "2")

    def test_what_was_finished_is_kept_and_continued(
        self,
        sampled: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        sampled(tmp_path / "whole", *self.SITES)
        whole = contents(tmp_path / "whole")
        genuine, calls = options.progress_bar, 0

        class Bar:
            """Interrupts, as Ctrl-C would, once two batches were written."""

            def __init__(self, *arguments: str) -> None:
                self.bar = genuine(*arguments)

            def __enter__(self) -> Any:
                update = self.bar.__enter__()

                def interrupting(done: int, planned: int) -> None:
                    nonlocal calls
                    calls += 1
                    update(done, planned)
                    if len(list((tmp_path / "cut").glob("*.cif"))) >= 2:
                        raise KeyboardInterrupt

                return interrupting

            def __exit__(self, *error: Any) -> Any:
                return self.bar.__exit__(*error)

        with monkeypatch.context() as patch:
            patch.setattr(options, "progress_bar", Bar)
            sampled(tmp_path / "cut", *self.SITES, code=130)
        assert calls > 1
        kept = contents(tmp_path / "cut")
        files = [name for name in kept if name.endswith(".cif")]
        assert 2 <= len(files) < len([n for n in whole if n.endswith(".cif")])
        assert all(kept[name] == whole[name] for name in files)
        assert {r["file"] for r in table(tmp_path / "cut")} == set(files)
        sampled(tmp_path / "cut", *self.SITES)
        assert contents(tmp_path / "cut") == whole


class TestTrain:
    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(network_module.SIZES, "small", TINY)

    COMMAND = ("train", "--steps", "4", "--batch-size", "4", "--log-every", "2", "--threads", "1")
    PARTS = ("prior", "ranker", "settings", "proposal")
    EPOCHS = tuple(x for part in PARTS for x in (f"--{part}-epochs", "1"))
    ALL = frozenset({*PARTS, "types"})  # structure types are gathered, not fitted

    def test_train_resume_sample(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "run"
        command = [*self.COMMAND, *self.EPOCHS, "--out", str(out)]
        assert run(command) == 0
        assert {p.name for p in out.iterdir()} == {
            "config.json",
            "fits",
            "log.csv",
            "loss.png",
            "model.safetensors",
            "state.safetensors",
        }
        first = load_model(out / "model.safetensors")
        assert set(first.parts()) == self.ALL
        capsys.readouterr()
        assert run(command) == 0
        assert "resuming" in capsys.readouterr().err
        assert load_model(out / "model.safetensors").hash == first.hash
        sample = ["sample", "--model", str(out / "model.safetensors"), "--sites", "Mg:1,O:1"]
        sample += ["--sg", "225", "--n", "2", "--out", str(tmp_path / "c"), *LEVELS, *LOOSE]
        assert run(sample) == 0
        assert table(tmp_path / "c")

    @pytest.mark.slow
    def test_fits_of_where_chains_start_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Interrupted in the second member of the proposal: what was done before is kept."""
        from langevin_xtal.train import parts

        command = [*self.COMMAND, *self.EPOCHS, "--proposal-members", "2", "--out"]
        assert run([*command, str(tmp_path / "whole")]) == 0
        whole = load_model(tmp_path / "whole" / "model.safetensors")
        assert whole.proposal is not None
        assert whole.proposal.config.members == 2
        genuine, calls = parts.fit_proposal, 0

        def cut(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return genuine(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(parts, "fit_proposal", cut)
            assert run([*command, str(tmp_path / "cut")]) == 130
        kept = load_model(tmp_path / "cut" / "model.safetensors")
        assert set(kept.parts()) == self.ALL
        assert kept.proposal is not None
        assert kept.proposal.config.members == 1
        for name in ("fit_prior", "fit_ranker", "fit_settings"):
            monkeypatch.delattr(parts, name)
        assert run([*command, str(tmp_path / "cut")]) == 0
        again = load_model(tmp_path / "cut" / "model.safetensors")
        assert again.hash == whole.hash

    @pytest.mark.slow
    def test_parts_of_init(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kept with no epochs, and where fits start with some."""
        from langevin_xtal.train import parts

        assert run([*self.COMMAND, *self.EPOCHS, "--out", str(tmp_path / "a")]) == 0
        path = str(tmp_path / "a" / "model.safetensors")
        given = load_model(path).parts()
        seen: dict[str, Any] = {}
        for name in self.PARTS:

            def fit(*args: Any, name: str = name, **kwargs: Any) -> Any:
                seen[name] = kwargs["init"]
                return given[name]

            monkeypatch.setattr(parts, f"fit_{name}", fit)
        again = [*self.COMMAND, "--init", path, "--out"]
        assert set(given) == self.ALL
        none = [x for name in self.PARTS for x in (f"--{name}-epochs", "0")]
        none += ["--structure-types", "0"]
        assert run([*again, str(tmp_path / "b"), *none]) == 0
        assert not seen
        kept = load_model(tmp_path / "b" / "model.safetensors").parts()
        assert set(kept) == set(given)
        for key, value in kept.pop("types").to_tensors().items():
            assert torch.equal(value, given["types"].to_tensors()[key])
        for name, part in kept.items():
            for key, value in part.state_dict().items():
                assert torch.equal(value, given[name].state_dict()[key])
        assert run([*again, str(tmp_path / "c"), *self.EPOCHS]) == 0
        assert set(seen) == set(self.PARTS)
        for name, part in seen.items():
            for key, value in part.state_dict().items():
                assert torch.equal(value, given[name].state_dict()[key])

    def test_other_settings_are_refused(self, refused: Any, tmp_path: Path) -> None:
        command = [*self.COMMAND, *self.EPOCHS, "--out", str(tmp_path)]
        assert run(command) == 0
        refused([*command, "--seed", "1"], str(tmp_path), "other settings (seed)")
        (tmp_path / "state.safetensors").write_bytes(b"cut")
        refused(command, "state.safetensors", "truncated")


class TestInfo:
    def test_model(self, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["model", "info", str(tiny_path)]) == 0
        out = capsys.readouterr().out
        assert "CrystalModel(tiny" in out
        assert '"licence": "CC0-1.0"' in out

    def test_models(self, capsys: pytest.CaptureFixture[str]) -> None:
        from langevin_xtal.model.checkpoint import shipped_models
        from langevin_xtal.model.properties import shipped_properties

        assert run(["model", "info"]) == 0
        models = [*shipped_models(), *shipped_properties()]
        assert len(capsys.readouterr().out.splitlines()) == len(models)
        for name in shipped_properties():
            assert run(["model", "info", name]) == 0
            assert '"licence": "CC-BY 4.0' in capsys.readouterr().out

    def test_data(
        self, reference: PackedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = reference.save(tmp_path / "reference.lxd")
        assert run(["data", "info", str(path)]) == 0
        out = capsys.readouterr().out
        assert f"crystals        {len(reference)}" in out
        assert reference.content_hash in out


TEXT = st.one_of(
    st.text(),
    st.text(alphabet="0123456789+-,: ²٣PnmaFdCuSiKX_/"),
    st.lists(st.sampled_from([*SYMBOLS, "62", "Pnma", "1-3", "Cu:2", "-", ":", ""])).map(",".join),
)
NUMBERS = st.lists(
    st.one_of(
        st.floats().map(str),
        st.integers().map(str),
        st.sampled_from(["1/3", "-1/4", "1/0", "/", ".", "+.5", "nan", "inf", "1e5", ""]),
    ),
    max_size=7,
).map(",".join)


class TestFuzzedOptions:
    @given(TEXT)
    @hypothesis_settings(max_examples=300, deadline=None)
    @example("Cu,Si")
    def test_elements(self, text: str) -> None:
        found = self._convert(types.Elements(), text)
        if found is not None:
            assert found
            assert len(set(found)) == len(found)
            assert all(symbol in SYMBOLS[1:] for symbol in found)

    @given(TEXT)
    @hypothesis_settings(max_examples=300, deadline=None)
    @example("Cu:" + "1" * 5000)
    @example("Cu:٣")
    @example("Cu:2,Si:1")
    def test_sites(self, text: str) -> None:
        found = self._convert(types.Sites(), text)
        if found is not None:
            assert all(isinstance(count, int) for count in found.values())

    @given(TEXT)
    @hypothesis_settings(max_examples=300, deadline=None)
    @example("²")
    @example("+-5")
    @example("1" * 5000)
    @example("1-" + "9" * 5000)
    @example("62,Pnma,140-142")
    def test_space_groups(self, text: str) -> None:
        try:
            found = parse_groups(text)
        except InputError:
            found = None
        if found is not None:
            assert found
            assert all(1 <= number <= 230 for number in found)
            assert len(set(found)) == len(found)

    @given(st.one_of(TEXT, NUMBERS))
    @hypothesis_settings(max_examples=300, deadline=None)
    @example("5,6,7")
    @example("5,6,7,90,90,1e999999999")
    @example("1" * 5000 + ",2,3")
    def test_cells(self, text: str) -> None:
        found = self._convert(types.CellParameters(), text)
        if found is not None:
            assert len(found) in (3, 6)
            assert all(0 < v < np.inf for v in found)

    @given(st.one_of(TEXT, NUMBERS.map("Cu:{}".format), NUMBERS))
    @hypothesis_settings(max_examples=300, deadline=None)
    @example("Cu:0,0,0;Si:1/4,1/4,1/4")
    @example("Cu:1/0,0,0")
    @example("Cu:٣,0,0")
    def test_fixed_sites(self, text: str) -> None:
        found = self._convert(types.FixedSites(), text)
        if found is not None:
            assert found
            assert all(s in SYMBOLS[1:] and np.isfinite(x).all() for s, x in found)

    @staticmethod
    def _convert(kind: click.ParamType, text: str) -> Any:
        try:
            return kind.convert(text, None, None)
        except InputError:
            return None

    def test_good_ones(self) -> None:
        assert types.Elements().convert(" Cu, Si ,K", None, None) == ("Cu", "Si", "K")
        assert types.Sites().convert("Cu:2, Si : 1", None, None) == {"Cu": 2, "Si": 1}
        cell = types.CellParameters().convert("5.5, 6,7.25,90,101.5,90", None, None)
        assert cell == (5.5, 6.0, 7.25, 90.0, 101.5, 90.0)
        fixed = types.FixedSites().convert("Cu:0,0,0; Si : 1/4,-.25,+2/3 ;", None, None)
        assert fixed == (("Cu", (0.0, 0.0, 0.0)), ("Si", (0.25, -0.25, 2 / 3)))
        assert parse_groups("62,Fm-3m,140-142,p6_3/mmc,62") == (62, 225, 140, 141, 142, 194)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--formula", "OgO2", "--sg", "225"], True),
        (["--sites", "Og:1,O:1", "--sg", "225"], True),
        (["--formula", "NaCl", "--sg", "225"], False),
    ],
)
def test_elements_that_no_training_crystal_has_are_said(
    arguments: list[str], said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["sample", *arguments, "--n", "1", "--out", str(tmp_path / "c")])
    assert code == 0
    assert ("no training crystal of model small has Og" in capsys.readouterr().err) == said
