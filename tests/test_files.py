"""Files are written whole or not at all, and nothing is replaced that is no file."""

from __future__ import annotations

import csv
import errno
import io
import os
import resource
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from langevin_xtal import files
from langevin_xtal.cli import run
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.files import (
    check_target,
    clear_left,
    replacing,
    unwritable,
    write_bytes,
    write_rows,
    write_text,
)
from tests.attacks import digests
from tests.test_search import forked, needs_fork

CIF = """data_x
_cell_length_a 3
_cell_length_b 3
_cell_length_c 3
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cu1 Cu 0 0 0
Au1 Au 0.5 0.5 0.5
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestReplacing:
    def test_new_and_old(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        write_text(path, "one\nå")
        assert path.read_bytes() == "one\nå".encode()
        write_bytes(path, b"\x00\r\n", durable=True)
        assert path.read_bytes() == b"\x00\r\n"
        assert names(tmp_path) == ["a.txt"]

    def test_permissions(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            write_text(tmp_path / "new", "")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        (tmp_path / "new").chmod(0o600)
        write_text(tmp_path / "new", "secret")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600

    def test_links_are_followed_and_stay(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        target, link = tmp_path / "there" / "a", tmp_path / "link"
        link.symlink_to("there/a")
        write_text(link, "new")  # a link to nothing makes the file
        assert link.is_symlink()
        assert target.read_text() == "new"
        write_text(link, "newer")
        assert link.is_symlink()
        assert target.read_text() == "newer"
        assert names(tmp_path / "there") == ["a"]

    def test_links_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(InputError, match=r"/a cannot be written: Too many levels"):
            check_target(tmp_path / "a")

    @pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_failure_leaves_what_was(self, tmp_path: Path, failure: type[BaseException]) -> None:
        path = tmp_path / "a"
        path.write_text("old")

        def fail() -> None:
            with replacing(path) as stream:
                stream.write("half")
                raise failure

        with pytest.raises(failure):
            fail()
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a"]

    def test_half_a_letter_is_written_as_its_number(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a", "x\udc80")
        assert (tmp_path / "a").read_text() == "x\\udc80"

    def test_long_names(self, tmp_path: Path) -> None:
        write_text(tmp_path / ("x" * 255), "1")
        assert (tmp_path / ("x" * 255)).read_text() == "1"

    def test_the_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            write_text(tmp_path / "no" / "a", "")
        assert caught.value.filename == str(tmp_path / "no" / "a")

    @needs_fork
    def test_a_full_disk_is_named_and_left_clean(self, tmp_path: Path) -> None:
        path, reported = tmp_path / "a", tmp_path / "report"
        path.write_text("old")

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            try:
                write_text(path, "x" * 5000)
            except OSError as error:
                reported.write_text(f"{error.errno} {error.filename}")

        forked(work).join()
        assert reported.read_text() == f"{errno.EFBIG} {path}"
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a", "report"]

    def test_an_error_within_keeps_its_own_name(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
            (tmp_path / "other").read_text()
        assert caught.value.filename == str(tmp_path / "other")


def devices(folder: Path) -> dict[str, Path]:
    """What is no regular file, one of each kind that can be made here."""
    made = {
        "a folder": folder / "folder",
        "a pipe": folder / "pipe",
        "a socket": folder / "socket",
    }
    made["a folder"].mkdir()
    os.mkfifo(made["a pipe"])
    (folder / "link").symlink_to("pipe")
    made["a pipe "] = folder / "link"
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may have 100 characters
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    try:
        os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:  # needs root
        pass
    else:
        made["a device"] = folder / "device"
    return made


class TestNoFile:
    def test_is_refused_and_stays(self, tmp_path: Path) -> None:
        for kind, path in devices(tmp_path).items():
            before = os.lstat(path)
            with pytest.raises(InputError, match=f"it is {kind.strip()}; give the name of a file"):
                write_text(path, "x")
            after = os.lstat(path)
            assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
        assert not list(tmp_path.glob(".*"))

    def test_by_every_command(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_path: Path
    ) -> None:
        (tmp_path / "x.cif").write_text(CIF)
        source = str(tmp_path / "x.cif")
        packed = str(tmp_path / "x.lxd")
        assert run(["data", "prepare", source, "--out", packed, "--workers", "1"]) == 0
        lines: list[Callable[[str], list[str]]] = [
            lambda out: ["data", "prepare", source, "--out", out],
            lambda out: ["data", "join", packed, "--out", out],
            lambda out: ["report", source, "--out", out, "--force"],
            lambda out: ["export", "xyz", source, "--out", out, "--force"],
            lambda out: ["hull", source, "--out", out, "--force"],
            lambda out: ["bench", "--model", str(tiny_path), "--json", out],
            lambda out: [
                "sample", "--elements", "Cu", "--sg", "225", "--n", "1", "--model",
                str(tiny_path), "--out", str(tmp_path / "s"), "--trajectory", out, "--force",
            ],
        ]  # fmt: skip
        for path in devices(tmp_path).values():
            before = os.lstat(path)
            for line in lines:
                capsys.readouterr()
                assert run(line(str(path))) == 2, (line(str(path)), capsys.readouterr())
                assert str(path) in capsys.readouterr().err
            after = os.lstat(path)
            assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)

    def test_folders_where_files_belong(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_path: Path
    ) -> None:
        for name in ("run.json", "candidates.csv"):
            out = tmp_path / f"out-{name}"
            (out / name).mkdir(parents=True)
            line = ["sample", "--elements", "Cu", "--sg", "225", "--n", "1", "--levels", "2"]
            assert run([*line, "--model", str(tiny_path), "--out", str(out)]) == 2
            assert name in capsys.readouterr().err


class TestTwoWriters:
    @pytest.mark.slow
    @needs_fork
    def test_never_tear_a_table(self, tmp_path: Path) -> None:
        path, columns = tmp_path / "t.csv", ("k", "text")

        def write(letter: str) -> Callable[[], None]:
            def work() -> None:
                for k in range(150):
                    with replacing(path) as stream:
                        rows = [{"k": k, "text": letter * 2000} for _ in range(3)]
                        write_rows(stream, columns, rows)

            return work

        processes = [forked(write(letter)) for letter in "abc"]
        torn = read = 0
        while any(process.is_alive() for process in processes):
            if path.exists():
                rows = list(csv.DictReader(io.StringIO(path.read_text())))
                read += 1
                whole = len(rows) == 3 and len({(row["k"], row["text"]) for row in rows}) == 1
                torn += not (whole and len(rows[0]["text"]) == 2000)
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert read > 20
        assert torn == 0
        assert names(tmp_path) == ["t.csv"]

    def test_threads_of_one_process(self, tmp_path: Path) -> None:
        path, failed = tmp_path / "t", []

        def work(letter: str) -> None:
            try:
                for _ in range(200):
                    write_text(path, letter * 1000)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert path.read_text() in {letter * 1000 for letter in "abcd"}
        assert names(tmp_path) == ["t"]


class TestLeftovers:
    def test_of_dead_processes_are_removed(self, tmp_path: Path) -> None:
        dead = subprocess.Popen(["true"])
        dead.wait()
        name = files._temporary()
        mine = tmp_path / name
        left = tmp_path / name.replace(f".{os.getpid()}.", f".{dead.pid}.")
        elsewhere = tmp_path / left.name.replace(files._computer(), "0" * 8)
        for path in (mine, left, elsewhere):
            path.touch()
        clear_left(tmp_path)
        assert names(tmp_path) == sorted([mine.name, elsewhere.name])


def test_a_full_disk_is_no_bad_input() -> None:
    full = unwritable("x", OSError(errno.ENOSPC, "No space left on device"), DataError, "advice")
    assert str(full).startswith("x cannot be written: No space left on device; make room")
    assert full.exit_code == 1
    assert DataError("x").exit_code == 2
    wrong = unwritable("x", OSError(errno.EACCES, "Permission denied"), DataError, "advice")
    assert str(wrong) == "x cannot be written: Permission denied; advice"
    assert wrong.exit_code == 2


def test_a_full_disk_of_a_packed_file(
    reference: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = digests(tmp_path)
    monkeypatch.setattr(PackedDataset, "_write", full)
    with pytest.raises(DataError) as caught:
        reference.save(tmp_path / "a.lxd")
    assert caught.value.exit_code == 1
    assert digests(tmp_path) == before
