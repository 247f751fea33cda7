"""Fetching crystals, from a server of the test's own and a stand-in for the Materials Project."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from langevin_xtal.cli.data import data as data_command
from langevin_xtal.dataset import fetch
from langevin_xtal.dataset.fetch import Split, fetch_materials_project, fetch_mp20
from langevin_xtal.dataset.prepare import prepare
from langevin_xtal.errors import DataError, InputError, LangevinXtalError, MissingPackageError

TEXT = "material_id,cif\n" + "".join(f'mp-{k},"data_x\n_cell {k}"\n' for k in range(50))


@dataclass
class Server:
    """Serves ``texts`` by path; may break off, or serve no ranges."""

    texts: dict[str, str]
    break_after: int | None = None
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append((self.path, wanted))
                if self.path not in server.texts:
                    self.send_error(404)
                    return
                whole = server.texts[self.path].encode()
                tag = f'"{hashlib.md5(whole).hexdigest()}"'
                same = self.headers.get("If-Range") == tag
                start = int(wanted[6:-1]) if wanted and same and server.ranges else 0
                if start >= len(whole):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(whole) - start))
                self.end_headers()
                stop = len(whole) if server.break_after is None else start + server.break_after
                self.wfile.write(whole[start:stop])

            def log_message(self, *details: object) -> None:
                pass

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    stand_in = Server({f"/{name}": TEXT for name in ("train.csv", "val.csv", "test.csv")})
    running = ThreadingHTTPServer(("127.0.0.1", 0), stand_in.handler())
    stand_in.address = f"http://127.0.0.1:{running.server_port}/"
    monkeypatch.setattr(fetch, "MP20", tuple(Split(split.name, 50) for split in fetch.MP20))
    thread = Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield stand_in
    running.shutdown()
    thread.join()
    running.server_close()


class TestMP20:
    def test_fetched_once(self, server: Server, tmp_path: Path) -> None:
        done: list[tuple[int, int]] = []
        paths = fetch_mp20(
            tmp_path / "x", address=server.address, progress=lambda *d: done.append(d)
        )
        assert [p.read_text(encoding="utf-8") for p in paths] == [TEXT] * 3
        assert done[-1] == (len(TEXT), len(TEXT))
        digest = hashlib.sha256(TEXT.encode()).hexdigest()
        assert (tmp_path / "x/val.csv.sha256").read_text(encoding="utf-8").startswith(digest)
        assert fetch_mp20(tmp_path / "x", address=server.address) == paths
        assert len(server.asked) == 3
        paths[1].write_text("changed", encoding="utf-8")
        with pytest.raises(DataError, match=r"val\.csv was changed since it was fetched"):
            fetch_mp20(tmp_path / "x", address=server.address)

    def test_goes_on(self, server: Server, tmp_path: Path) -> None:
        server.break_after = 700
        with pytest.raises(LangevinXtalError, match="goes on"):
            fetch_mp20(tmp_path, address=server.address)
        assert (tmp_path / "train.csv.part").stat().st_size == 700
        assert not (tmp_path / "train.csv").exists()
        server.break_after = None
        paths = fetch_mp20(tmp_path, address=server.address)
        assert server.asked[1] == ("/train.csv", "bytes=700-")
        assert paths[0].read_text(encoding="utf-8") == TEXT
        assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("*.etag"))

    def test_nothing_was_missing(self, server: Server, tmp_path: Path) -> None:
        """Killed between the last byte and the file's name."""
        tag = hashlib.md5(TEXT.encode()).hexdigest()
        (tmp_path / "train.csv.part").write_text(TEXT, encoding="utf-8")
        (tmp_path / "train.csv.etag").write_text(f'"{tag}"', encoding="utf-8")
        paths = fetch_mp20(tmp_path, address=server.address)
        assert [wanted for path, wanted in server.asked if path == "/train.csv"] == [
            f"bytes={len(TEXT)}-",
            None,
        ]
        assert paths[0].read_text(encoding="utf-8") == TEXT

    @pytest.mark.parametrize("changed", [True, False])
    def test_starts_over(self, server: Server, tmp_path: Path, changed: bool) -> None:
        """Where the file is another by now, or the server gives no parts of it."""
        server.break_after = 700
        with pytest.raises(LangevinXtalError):
            fetch_mp20(tmp_path, address=server.address)
        server.break_after, server.ranges = None, changed
        expected = TEXT.replace("_cell", "_CELL") if changed else TEXT
        server.texts["/train.csv"] = expected
        assert fetch_mp20(tmp_path, address=server.address)[0].read_text() == expected

    def test_by_two_processes(self, server: Server, tmp_path: Path) -> None:
        server.break_after = 700
        with pytest.raises(LangevinXtalError, match="goes on"):
            fetch_mp20(tmp_path, address=server.address)
        server.break_after = None
        before = (tmp_path / "train.csv.part").read_bytes()
        with (tmp_path / "train.csv.part").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(LangevinXtalError, match=r"train\.csv is being fetched by another"):
                fetch_mp20(tmp_path, address=server.address)
        assert (tmp_path / "train.csv.part").read_bytes() == before
        assert fetch_mp20(tmp_path, address=server.address)[0].read_text() == TEXT

    def test_links_and_devices(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "train.csv").symlink_to(tmp_path / "elsewhere/train.csv")
        os.mkfifo(tmp_path / "val.csv.part")
        with pytest.raises(InputError, match=r"val\.csv\.part cannot be written: it is a pipe"):
            fetch_mp20(tmp_path, address=server.address)
        assert (tmp_path / "train.csv").is_symlink()
        assert (tmp_path / "elsewhere/train.csv").read_text() == TEXT

    def test_another_file(self, server: Server, tmp_path: Path) -> None:
        server.texts["/val.csv"] = "<html>moved</html>"
        with pytest.raises(DataError, match=r"val\.csv holds 0 crystals where MP-20 has 50"):
            fetch_mp20(tmp_path, address=server.address)
        assert (tmp_path / "train.csv").exists()
        assert not (tmp_path / "val.csv").exists()

    def test_no_answer(self, server: Server, tmp_path: Path) -> None:
        del server.texts["/train.csv"]
        with pytest.raises(LangevinXtalError, match="answers 404"):
            fetch_mp20(tmp_path, address=server.address)
        with pytest.raises(LangevinXtalError, match="cannot be reached") as caught:
            fetch_mp20(tmp_path, address="http://127.0.0.1:9/")
        assert not isinstance(caught.value, InputError)
        (tmp_path / "file").write_text("", encoding="utf-8")
        with pytest.raises(LangevinXtalError, match="cannot be written"):
            fetch_mp20(tmp_path / "file/x", address=server.address)


class FakeProject:
    """Stands in for MPRester: a crystal for each number of atoms up to 3."""

    def __init__(self, key: str) -> None:
        if key != "good":
            raise RuntimeError("REST query returned with error status code 401")
        self.materials = SimpleNamespace(summary=self)

    asked: list[dict[str, Any]] = []  # noqa: RUF012
    broken_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        return None

    def search(self, **question: Any) -> list[Any]:
        atoms = question["num_sites"][0]
        if atoms == self.broken_at:
            raise ConnectionError("Max retries exceeded")
        self.asked.append(question)
        if atoms > 3:
            return []
        places = [[k / atoms, 0.1 * k, 0] for k in range(atoms)]
        crystal = Structure(Lattice.orthorhombic(3.0 * atoms, 3.3, 3.6), ["Cu"] * atoms, places)
        return [
            SimpleNamespace(
                material_id=f"mp-{atoms}",
                formula_pretty="Cu",
                energy_above_hull=0.01 * atoms,
                formation_energy_per_atom=0.0,
                structure=crystal,
            )
        ]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> type[FakeProject]:
    monkeypatch.setattr(FakeProject, "asked", [])
    monkeypatch.setattr(FakeProject, "broken_at", 0)
    return FakeProject


class TestMaterialsProject:
    def test_fetched_and_packed(self, project: type[FakeProject], tmp_path: Path) -> None:
        out = tmp_path / "x/mp.csv"
        project.broken_at = 3
        stand_in: dict[str, Any] = {"elements": ["K", "Cu"], "max_atoms": 4, "client": project}
        with pytest.raises(LangevinXtalError, match="cannot be reached"):
            fetch_materials_project(out, "good", **stand_in)
        project.broken_at = 0
        assert fetch_materials_project(out, "good", **stand_in) == 3
        assert [q["num_sites"] for q in project.asked] == [(n, n) for n in (1, 2, 3, 4)]
        assert project.asked[0]["chemsys"] == ["Cu", "K", "Cu-K"]
        assert project.asked[0]["energy_above_hull"] == (0.0, 0.1)
        assert not project.asked[0]["include_gnome"]
        packed = prepare(out, tmp_path / "mp.lxd", workers=1).dataset
        assert sorted(packed.id.tolist()) == ["mp-1", "mp-2", "mp-3"]
        assert sorted(packed.properties["e_above_hull"]) == pytest.approx([0.01, 0.02, 0.03])
        with pytest.raises(DataError, match="asked for otherwise"):
            fetch_materials_project(out, "good", max_atoms=4, client=project)

    def test_refusals(self, project: type[FakeProject], tmp_path: Path) -> None:
        out = tmp_path / "mp.csv"
        with pytest.raises(InputError, match="does not accept this key"):
            fetch_materials_project(out, "wrong", client=project)
        with pytest.raises(InputError, match="is empty"):
            fetch_materials_project(out, " ", client=project)
        with pytest.raises(InputError, match="at most 9"):
            fetch_materials_project(
                out,
                "good",
                elements=["H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne"],
                client=project,
            )


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(data_command, ["fetch", *map(str, arguments)])


class TestCommand:
    def test_mp20(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch_mp20, "__kwdefaults__", {
            "address": server.address, "progress": None
        })  # fmt: skip
        result = invoke("mp-20", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        assert "val.csv" in result.output
        assert (tmp_path / "test.csv").exists()

    def test_materials_project(
        self, project: type[FakeProject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fetch, "_client", project)
        monkeypatch.setenv("MP_API_KEY", "good")
        arguments = ["materials-project", "--key", "env", "--max-atoms", 2, "--out", tmp_path]
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        assert "2 crystals in" in result.output
        assert (tmp_path / "materials-project.csv").read_text().count("data_Cu") == 2

    def test_bad_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MP_API_KEY", raising=False)
        for arguments, words in (
            (["mp-20", "--elements", "Cu"], "--elements is for materials-project"),
            (["materials-project"], "needs --key"),
            (["materials-project", "--key", "env"], "MP_API_KEY; it is not set"),
        ):
            result = invoke(*arguments, "--out", tmp_path)
            assert isinstance(result.exception, InputError), words
            assert words in str(result.exception)
        assert not list(tmp_path.iterdir())

    def test_without_the_client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mp_api.client", None)
        result = invoke("materials-project", "--key", "x" * 32, "--out", tmp_path)
        assert isinstance(result.exception, MissingPackageError)
        assert "langevin-xtal[mp]" in str(result.exception)
