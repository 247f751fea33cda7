"""The store of a search: who may do what, what is refused, and what survives."""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError, LangevinXtalError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.search import claims
from langevin_xtal.search import store as store_module
from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.rows import from_data
from langevin_xtal.search.store import (
    LOOK,
    Change,
    Row,
    Store,
    is_store,
    plain_address,
    read_lowest,
    read_progress,
    read_rows,
    read_summary,
)
from tests.postgres import Server, running_server
from tests.test_search import content, forked, needs_fork, tiny_campaign

SETTINGS: dict[str, Any] = {"version": "0", "elements": "Na,Cl", "seed": 0, "relax": None}
CELL: Cell = (np.eye(3) * 4.0, np.array([[0, 0, 0], [0.5, 0.5, 1 / 3]]), np.array([11, 17]))


def row(index: int, **facts: Any) -> Row:
    cell = (CELL[0] * (1 + index / 100), CELL[1], CELL[2])
    return Row(index, "Na:1,Cl:1 in P1 (1)", 1, cell, {"min_distance": 2.0 / 3.0, **facts})


def fill(address: str | Path, count: int) -> None:
    with Store(address, SETTINGS) as store:
        claim = store.claim("sample", range(count), count)
        store.add([row(index) for index in claim.units])


def intact(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


class TestRows:
    def test_come_back_to_the_last_bit(self, path: Path) -> None:
        rng = np.random.default_rng(1)
        cell = (rng.normal(size=(3, 3)), rng.uniform(size=(5, 3)), np.arange(1, 6))
        kept = (rng.normal(size=(3, 3)), rng.uniform(size=(5, 3)), np.arange(1, 6))
        given = Row(
            index=3,
            request="H:1 in P1 (1)",
            group=1,
            sampled=cell,
            facts={"a": 0.1 + 0.2, "b": True, "c": 7, "d": "1e5", "e": "ΔE = −1"},
            provenance={"seed": 4, "weights": "00ff"},
        )
        with Store(path, SETTINGS) as store:
            store.claim("sample", [3], 1)
            store.add([given])
            store.claim("relax", [3], 1)
            store.settle_each("relax", {3: Change({"energy": -1.5, "c": None}, kept=kept)})
        (found,) = read_rows(path)
        assert (found.index, found.request, found.group) == (3, given.request, 1)
        assert found.provenance == given.provenance
        expected = {k: v for k, v in given.facts.items() if k != "c"} | {"energy": -1.5}
        assert found.facts == expected
        assert found.sampled is not None
        assert found.kept is not None
        for got, wanted in ((found.sampled, cell), (found.kept, kept)):
            assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert found.released is None

    def test_the_best_geometry(self) -> None:
        kept, released = (CELL[0] * 2, *CELL[1:]), (CELL[0] * 3, *CELL[1:])
        facts = {"symmetry_broke": True}
        whole = Row(0, "", 1, CELL, facts, kept, released)
        assert whole.cell is released
        assert whole.changed(Change({"symmetry_broke": False})).cell is kept
        assert Row(0, "", 1, CELL).cell is CELL

    def test_states(self) -> None:
        facts: dict[str, Any] = {}
        seen = []
        for name, value in (
            ("min_distance", 1.0),
            ("filtered", True),
            ("duplicate_of", -1),
            ("known", "mp-1"),
            ("energy", -1.0),
            ("ranked", True),
            ("phonons", "no imaginary mode"),
            ("same_as", 2),
            ("reason", "overlap"),
        ):
            facts[name] = value
            seen.append(row(0, **facts).state)
        assert seen == [
            *("sampled", "filtered", "unique", "known", "relaxed", "ranked", "phonons"),
            *("duplicate", "rejected"),
        ]

    def test_numbers_that_are_none(self, path: Path) -> None:
        with Store(path, SETTINGS) as store:
            store.claim("sample", [0], 1)
            store.add([row(0, energy=float("nan"), found=np.int64(4), flag=np.bool_(True))])
        assert read_rows(path)[0].facts == {"min_distance": 2 / 3, "found": 4, "flag": True}


class TestClaims:
    def test_each_unit_once(self, path: Path) -> None:
        with Store(path, SETTINGS) as first, Store(path, SETTINGS) as second:
            assert first.claim("sample", range(10), 4) == ([0, 1, 2, 3], 0, 10)
            assert second.claim("sample", range(10), 4).units == [4, 5, 6, 7]
            assert first.add([row(k) for k in range(4)]) == 4
            assert first.claim("sample", range(10), 4) == ([8, 9], 4, 6)
            assert second.claim("sample", range(10), 4).units == []
            assert first.claim("relax", range(2), 4).units == [0, 1]

    def test_what_was_not_finished_is_free_again(self, path: Path) -> None:
        with Store(path, SETTINGS) as first:
            first.claim("sample", range(4), 4)
            first.add([row(1)])
        with Store(path, SETTINGS) as second:
            assert second.claim("sample", range(4), 4) == ([0, 2, 3], 1, 3)

    @needs_fork
    def test_a_dead_process_loses_its_claims_at_once(self, path: Path) -> None:
        def die() -> None:
            store = Store(path, SETTINGS)
            store.__enter__()
            store.claim("sample", range(4), 3)
            os._exit(1)

        forked(die).join()
        with Store(path, SETTINGS) as store:
            assert store.claim("sample", range(4), 4).units == [0, 1, 2, 3]

    def test_a_silent_one_after_a_while(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        silent = Store(path, SETTINGS)
        monkeypatch.setattr(Store, "_beat", lambda self: None)
        silent.__enter__()
        silent.claim("sample", range(4), 4)
        monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
        with Store(path, SETTINGS, lease=100.0) as other:
            assert other.claim("sample", range(4), 4).units == []
            now[0] = 99.0
            assert other.claim("sample", range(4), 4).units == []
            now[0] = 101.0
            assert other.claim("sample", range(4), 2).units == [0, 1]
            # whoever is taken for dead and is not stores nothing twice
            assert silent.add([row(0), row(3)]) == 1
            assert other.add([row(0), row(1)]) == 2
        assert [r.index for r in read_rows(path)] == [0, 1, 3]

    def test_signs_of_life(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        beaten = threading.Event()
        monkeypatch.setattr(store_module, "BEAT_SECONDS", 0.01)
        with Store(path, SETTINGS) as store, closing(sqlite3.connect(path)) as connection:
            query = "SELECT beat FROM langevin_xtal_owner WHERE owner = ?"
            for _ in range(1000):
                if connection.execute(query, (store.owner,)).fetchone()[0] > 0:
                    beaten.set()
                    break
                beaten.wait(0.01)
        assert beaten.is_set()

    def test_changes_of_units_taken_over_are_dropped(self, path: Path) -> None:
        fill(path, 3)
        with Store(path, SETTINGS) as store:
            store.claim("relax", [0], 3)
            store.settle_each("relax", {0: Change({"energy": -1.0}), 1: Change({"energy": -2.0})})
            assert store.done("relax") == [0]
            store.settle_each("relax", {0: Change({"energy": -9.0})})  # done already
        assert [r.facts.get("energy") for r in read_rows(path)] == [-1.0, None, None]

    def test_a_look_at_less_does_not_undo_one_at_more(self, path: Path) -> None:
        fill(path, 3)
        with Store(path, SETTINGS) as less, Store(path, SETTINGS) as more:
            less.claim("duplicates", [2], 1)
            more.claim("duplicates", [3], 1)
            more.settle_all("duplicates", 3, {2: Change({"duplicate_of": 0})})
            less.settle_all("duplicates", 2, {2: Change({"duplicate_of": -1})})
        assert read_rows(path)[2].facts["duplicate_of"] == 0

    def test_claims_of_a_store_that_could_not_say_goodbye(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Store(path, SETTINGS) as store:
            store.claim("sample", range(3), 3)
            monkeypatch.setattr(store._database, "_connect", lambda: sqlite3.connect("/no/where"))
        with Store(path, SETTINGS) as store:
            assert store.claim("sample", range(3), 3).units == [0, 1, 2]

    def test_many_rows(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "CHUNK", 7)
        fill(path, 30)
        with Store(path, SETTINGS) as store:
            store.claim("duplicates", [30], 1)
            changes = {k: Change({"duplicate_of": -1}) for k in range(30)}
            store.settle_all("duplicates", 30, changes, seconds=2.0)
            store.claim("filter", range(30), 30)
            store.settle_each("filter", changes, seconds=3.0)
        assert all(r.facts["duplicate_of"] == -1 for r in read_rows(path))
        assert read_summary(path).seconds == {"duplicates": 2.0, "filter": 3.0}


class TestRefusals:
    def test_another_version(self, path: Path) -> None:
        fill(path, 1)
        with closing(sqlite3.connect(path)) as connection:
            ((text,),) = connection.execute(
                "SELECT value FROM information WHERE name = 'langevin_xtal'"
            )
            settings = json.loads(text) | {"format": 99, "version": "9.9"}
            connection.execute(
                "UPDATE information SET value = ? WHERE name = 'langevin_xtal'",
                (json.dumps(settings),),
            )
            connection.commit()
        for use in (lambda: Store(path, SETTINGS), lambda: read_rows(path)):
            with pytest.raises(DataError, match=r"format 99, written by langevin-xtal 9\.9"):
                use()

    def test_settings(self, path: Path) -> None:
        Store(path, SETTINGS)
        with pytest.raises(DataError, match="its seed is 0, not 1"):
            Store(path, SETTINGS | {"seed": 1})
        with pytest.raises(DataError, match="its elements is"):
            Store(path, SETTINGS | {"elements": None})
        assert Store(path, SETTINGS | {"relax": "emt"}).settings["relax"] == "emt"
        assert Store(path, SETTINGS).settings["relax"] == "emt"
        with pytest.raises(DataError, match='its relax is "emt", not "chgnet"'):
            Store(path, SETTINGS | {"relax": "chgnet"})
        assert Store(path, SETTINGS | {"version": "1"}).settings["seed"] == 0

    def test_no_store(self, tmp_path: Path) -> None:
        text = tmp_path / "text.db"
        text.write_text("not a database, but long enough to look like one")
        with pytest.raises(DataError, match="not a store of langevin-xtal"):
            Store(text, SETTINGS)
        assert text.read_text().startswith("not a database")
        with pytest.raises(DataError, match="is a folder"):
            Store(tmp_path, SETTINGS)
        with pytest.raises(DataError, match="no folder"):
            Store(tmp_path / "no" / "s.db", SETTINGS)
        with pytest.raises(DataError, match="does not exist"):
            read_rows(tmp_path / "none.db")
        assert not is_store(text)
        assert not is_store(tmp_path / "none.db")

    def test_a_database_of_something_else(self, tmp_path: Path) -> None:
        from ase import Atoms
        from ase.db import connect

        path = tmp_path / "mine.db"
        connect(path).write(Atoms("H", cell=[3, 3, 3], pbc=True))
        before = path.read_bytes()
        with pytest.raises(DataError, match="ASE database of something else"):
            Store(path, SETTINGS)
        assert path.read_bytes() == before
        assert not is_store(path)
        assert [e.formula for e in read_entries(path)] == ["H2"]
        with pytest.raises(DataError, match="not the store of a search"):
            read_rows(path)

    def test_damage(self, path: Path) -> None:
        fill(path, 20)
        data = bytearray(path.read_bytes())
        data[4096:] = bytes(len(data) - 4096)
        path.write_bytes(data)
        for use in (lambda: Store(path, SETTINGS), lambda: read_rows(path)):
            with pytest.raises(DataError, match=r"s\.db"):
                use()

    def test_a_damaged_row(self, path: Path) -> None:
        fill(path, 1)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE systems SET data = ?", (b"12345678",))
            connection.commit()
        with pytest.raises(DataError, match="a row of the store is damaged"):
            read_rows(path)

    def test_nothing_left(self, path: Path) -> None:
        with Store(path, SETTINGS) as store:
            store.claim("sample", [0], 1)
            store.add([row(0, reason="overlap: 0.2 Å")])
        with pytest.raises(DataError, match="no candidate left: all of its 1"):
            read_entries(path)
        assert read_summary(path).reasons == {"overlap: … Å": 1}

    def test_passwords_are_not_shown(self) -> None:
        shown = plain_address("postgresql://me:secret@host:5432/db?password=secret&x=1")
        assert shown == "postgresql://me:***@host:5432/db?password=***&x=1"
        assert plain_address("a:b@c.db") == "a:b@c.db"
        pytest.importorskip("psycopg2")
        with pytest.raises(DataError) as caught:
            read_rows("postgresql://me:secret@localhost:1/db")
        assert "secret" not in str(caught.value)


def outcome_of(work: Callable[[], None]) -> str:
    """What a process of its own raises; its sentence, or ``"done"``."""
    results = multiprocessing.get_context("fork").Queue()

    def run() -> None:
        try:
            work()
        except LangevinXtalError as error:
            results.put(f"{type(error).__name__}: {error}")
        except BaseException as error:
            results.put(f"unexpected {error!r}")
        else:
            results.put("done")

    process = forked(run)
    found = str(results.get(timeout=120))
    process.join()
    return found


@needs_fork
class TestDisk:
    def test_full(self, path: Path) -> None:
        fill(path, 20)
        before, size = read_rows(path), path.stat().st_size

        def write() -> None:
            # as a full disk: no file may grow beyond this
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
            with Store(path, SETTINGS) as store:
                claim = store.claim("sample", range(500), 500)
                store.add([row(index) for index in claim.units])

        message = outcome_of(write)
        assert message.startswith("LangevinXtalError: store")
        assert "is the disk full?" in message
        assert intact(path)
        after = read_rows(path)
        assert [r.index for r in after[:20]] == [r.index for r in before]
        with Store(path, SETTINGS) as store:
            claim = store.claim("sample", range(500), 500)
            assert claim.done == len(after)
            store.add([row(index) for index in claim.units])
        assert [r.index for r in read_rows(path)] == list(range(500))

    def test_full_before_it_begins(self, path: Path) -> None:
        def write() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
            Store(path, SETTINGS)

        assert "is the disk full?" in outcome_of(write)
        fill(path, 2)
        assert len(read_rows(path)) == 2

    def test_read_only(self) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            path = folder / "s.db"
            fill(path, 2)
            path.chmod(0o444)
            folder.chmod(0o555)
            before = path.read_bytes()

            def as_nobody(work: Callable[[], None]) -> Callable[[], None]:
                def run() -> None:
                    if os.geteuid() == 0:  # whom no permission stops
                        os.setuid(pwd.getpwnam("nobody").pw_uid)
                    work()

                return run

            def read() -> None:
                assert len(read_rows(path)) == 2
                assert len(read_entries(path)) == 2

            message = outcome_of(as_nobody(lambda: fill(path, 4)))
            assert message.startswith("DataError: store")
            assert "it is read-only" in message
            assert outcome_of(as_nobody(read)) == "done"
            assert path.read_bytes() == before
        finally:
            folder.chmod(0o755)
            shutil.rmtree(folder)

    def test_two_processes_make_one_store(self, path: Path) -> None:
        processes = [forked(lambda: fill(path, 6)) for _ in range(4)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert [r.index for r in read_rows(path)] == list(range(6))


# -- PostgreSQL


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running server."""
    with running_server() as found:
        if found is None:
            pytest.skip("PostgreSQL is not installed")
        yield found


@pytest.fixture
def address(server: Server, request: pytest.FixtureRequest) -> str:
    """A database of its own."""
    return server.database(f"test_{request.node.name.lower()}"[:60])


class TestPostgres:
    def test_rows_and_claims(self, address: str) -> None:
        with Store(address, SETTINGS) as first, Store(address, SETTINGS) as second:
            assert first.claim("sample", range(5), 3) == ([0, 1, 2], 0, 5)
            assert second.claim("sample", range(5), 3) == ([3, 4], 0, 5)
            given_up = Row(2, "H:1 in P1 (1)", 1, None, {"reason": "no candidate"})
            first.add([row(0), row(1, reason="overlap"), given_up])
            first.claim("relax", [0], 1)
            kept = (CELL[0] * 1.01, CELL[1], CELL[2])
            first.settle_each("relax", {0: Change({"energy": -1.5}, kept=kept)}, seconds=1.5)
        rows = read_rows(address)
        assert [r.state for r in rows] == ["relaxed", "rejected", "rejected"]
        assert rows[0].kept is not None
        assert np.array_equal(rows[0].kept[0], kept[0])
        assert np.array_equal(rows[0].kept[1], CELL[1])
        assert read_summary(address).seconds == {"relax": 1.5}
        assert [e.energy for e in read_entries(address)] == [-1.5]

    def test_refusals(self, address: str) -> None:
        with pytest.raises(DataError, match="not the store of a search"):
            read_rows(address)
        Store(address, SETTINGS)
        with pytest.raises(DataError, match="its seed is 0, not 1"):
            Store(address, SETTINGS | {"seed": 1})
        with pytest.raises(DataError, match="cannot be used"):
            Store(address.replace("lx@/test", "lx@/none"), SETTINGS)

    def test_a_failure_inside_a_transaction_leaves_nothing(self, address: str) -> None:
        with Store(address, SETTINGS) as store:
            store.claim("sample", range(3), 3)
            with pytest.raises(TypeError, match="not JSON"):
                store.add([row(0), row(1, strange=object())])
            assert store.add([row(2)]) == 1
        assert [r.index for r in read_rows(address)] == [2]

    @needs_fork
    def test_two_processes_share_it(
        self, address: str, tiny_model: CrystalModel, reference: PackedDataset, tmp_path: Path
    ) -> None:
        from ase.db import connect

        def share() -> None:
            tiny_campaign(address, tiny_model, reference).run()

        processes = [forked(share) for _ in range(2)]
        tiny_campaign(tmp_path / "file.db", tiny_model, reference).run()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert content(address) == content(tmp_path / "file.db")
        database = connect(address)
        for one in read_rows(address):  # ASE's own tables agree, too
            (found,) = database.select(candidate=one.index)
            assert found.state == one.state


class TestManyUnits:
    """Claims of samples take as long however many there are."""

    def test_a_claim_of_a_billion(self, path: Path) -> None:
        with Store(path, SETTINGS) as store:
            began = time.monotonic()
            claim = store.claim("sample", range(10**11), 3)
            store.add([row(k) for k in claim.units])
            assert claim == ([0, 1, 2], 0, 10**11)
            assert store.claim("sample", range(10**11), 2) == ([3, 4], 3, 10**11 - 3)
            assert time.monotonic() - began < 5

    def test_statements_do_not_grow(self, path: Path) -> None:
        with Store(path, SETTINGS) as store, closing(sqlite3.connect(path)) as connection:
            store.claim("sample", range(10), 1)
            with connection:
                connection.executemany(
                    "INSERT INTO langevin_xtal_work VALUES ('sample', ?, '', 1, NULL)",
                    [(k,) for k in range(1, 50_000)],
                )
            for query in (
                "SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = 'sample' AND unit < 9",
                "SELECT unit, owner FROM langevin_xtal_work WHERE stage = 'sample' AND done = 0 "
                "AND unit < 9 ORDER BY unit",
            ):
                plan = str(connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())
                assert "SEARCH" in plan
                assert "SCAN" not in plan
            assert store.claim("sample", range(60_000), 2) == ([50_000, 50_001], 49_999, 10_001)

    def test_fewer_than_before(self, path: Path) -> None:
        fill(path, 6)
        with Store(path, SETTINGS) as store:
            assert store.claim("sample", range(4), 9) == ([], 4, 0)
            assert store.claim("sample", range(8), 9) == ([6, 7], 6, 2)

    def test_lines_that_an_older_version_removed(self, path: Path) -> None:
        with Store(path, SETTINGS) as store:
            units = store.claim("sample", range(6), 6).units
            store.add([row(k) for k in units if k not in (1, 3)])
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM langevin_xtal_work WHERE done = 0")
        with Store(path, SETTINGS) as store:
            assert store.claim("sample", range(6), 9) == ([1, 3], 4, 2)
            store.add([row(1), row(3)])
            assert store.claim("sample", range(6), 9) == ([], 6, 0)

    def test_a_unit_beyond_all(self, path: Path) -> None:
        fill(path, 2)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE langevin_xtal_work SET unit = ? WHERE unit = 1", (2**62,))
        with Store(path, SETTINGS) as store, pytest.raises(DataError, match="ends with unit"):
            store.claim("sample", range(9), 1)

    def test_lines_that_an_older_version_removes_beside_it(self, path: Path) -> None:
        with Store(path, SETTINGS) as store, Store(path, SETTINGS) as other:
            mine = store.claim("sample", range(4), 2).units
            other.claim("sample", range(4), 2)
            store.add([row(k) for k in mine])
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("DELETE FROM langevin_xtal_work WHERE unit = 2")
            store.claim("sample", range(4), 1)
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("UPDATE langevin_xtal_work SET done = 1 WHERE unit = 3")
            assert store.claim("sample", range(4), 9) == ([2], 3, 1)


def lines(store: Store, stage: str, first: int, last: int, owner: str, done: int) -> None:
    """Units of a stage that others have."""
    with store._transaction() as cursor:
        for k in range(first, last, 500):
            units = range(k, min(k + 500, last))
            values = ", ".join(f"('{stage}', {unit}, '{owner}', {done}, NULL)" for unit in units)
            cursor.execute(f"INSERT INTO langevin_xtal_work VALUES {values}")


def check_claims_beside_many(address: str | Path) -> None:
    """Whatever others hold, a claim reads the lines that it takes."""
    with Store(address, SETTINGS) as other, Store(address, SETTINGS) as store:
        lines(store, "sample", 0, 3000, "", 1)
        lines(store, "sample", 3000, 9000, other.owner, 0)
        read: list[int] = []
        own = store._claims
        free, state = own.begun, own.state
        own.begun = lambda *a: read.append(len((found := free(*a))[0])) or found  # type: ignore[method-assign,func-returns-value]
        own.state = lambda *a: read.append(len(found := state(*a))) or found  # type: ignore[method-assign,func-returns-value]
        assert store.claim("sample", range(20_000), 4) == ([9000, 9001, 9002, 9003], 3000, 17_000)
        units = store.claim("sample", range(20_000), 4).units
        assert units == [9004, 9005, 9006, 9007]
        assert sum(read) == 0
        other.__exit__(None, None, None)
        assert store.claim("sample", range(20_000), 3) == ([3000, 3001, 3002], 3000, 17_000)
        assert sum(read) == 3


QUERIES = (
    "SELECT unit FROM langevin_xtal_work WHERE stage = 'sample' AND done = 0 AND owner = '' "
    "AND unit < 20000 ORDER BY unit LIMIT 3",
    "SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = 'sample' AND unit < 20000",
    "UPDATE langevin_xtal_work SET owner = '' WHERE owner = 'x' AND done = 0",
    "SELECT unit, owner, done FROM langevin_xtal_work WHERE stage = 'sample' AND unit IN (1, 2)",
    "SELECT value, COUNT(*) FROM text_key_values WHERE key = 'state' GROUP BY value",
    "SELECT above.value FROM number_key_values AS above, text_key_values AS state "
    "WHERE above.key = 'e_above_all' AND state.id = above.id AND state.key || '' = 'state' "
    "AND state.value NOT IN ('rejected', 'duplicate') ORDER BY above.value LIMIT 1 OFFSET 2",
)
"""What claims and reports ask."""


def check_ranked_without_reading_all(address: str | Path) -> None:
    """The best of a store, and counts, are those that reading all gives."""
    rng = np.random.default_rng(1)
    with Store(address, SETTINGS) as store:
        store.claim("sample", range(60), 60)
        rows = []
        for k in range(60):
            facts: dict[str, Any] = {"filtered": True, "energy": -1.0 - k / 100}
            if k % 3:
                facts["e_above_all"] = round(float(rng.random()), 1)  # many are the same
            if k % 5 == 0:
                facts["reason"] = "overlap"
            elif k % 7 == 0:
                facts["duplicate_of"] = 1
            rows.append(row(k, **facts))
        store.add(rows)
    everything = [entry.uid for entry in read_entries(address)]
    for count in (1, 2, 5, 17, 26, 27, 28, 29, 30, 60):
        assert [e.uid for e in read_entries(address, top=count)] == everything[:count]
    some = read_lowest(address, 5)
    assert some is not None
    assert 5 <= len(some) < len(everything) // 2
    assert read_lowest(address, 60) is None  # fewer have such an energy
    summary = read_summary(address)
    assert read_progress(address) == (summary.states, sum(summary.seconds.values()))


def check_many_writers(address: str | Path) -> None:
    """Threads with a store of their own, of which some end in the middle: each unit once."""
    fill(address, 150)
    stored: list[int] = []
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Store(address, SETTINGS) as store:
                units: Any = range(150) if number % 2 else list(range(150))
                for turn in range(200):
                    claim = store.claim("relax", units, 5)
                    if not claim.units and claim.left == 0:
                        return
                    if number < 2 and turn == 2:
                        return  # leaves what it has claimed
                    store.settle_each("relax", {k: Change({"steps": number}) for k in claim.units})
                    stored.extend(claim.units)
                    if not claim.units:
                        time.sleep(0.05)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(stored) == list(range(150))
    assert all("steps" in r.facts for r in read_rows(address))


class TestScale:
    """What must hold with many rows and many processes, on both databases."""

    def test_claims_beside_many(self, path: Path) -> None:
        check_claims_beside_many(path)

    def test_claims_beside_many_in_postgresql(self, address: str) -> None:
        check_claims_beside_many(address)

    def test_ranked_without_reading_all(self, path: Path) -> None:
        check_ranked_without_reading_all(path)

    def test_ranked_without_reading_all_in_postgresql(self, address: str) -> None:
        check_ranked_without_reading_all(address)

    def test_many_writers(self, path: Path) -> None:
        check_many_writers(path)

    def test_many_writers_in_postgresql(self, address: str) -> None:
        check_many_writers(address)

    def test_a_target_needs_all_rows(self, path: Path) -> None:
        with Store(path, SETTINGS | {"target": ["band_gap=1:2"]}) as store:
            store.claim("sample", range(2), 2)
            store.add([row(0, e_above_all=0.1, target_probability=0.1),
                       row(1, e_above_all=0.2, target_probability=0.9)])  # fmt: skip
        assert read_lowest(path, 1) is None
        assert [e.uid for e in read_entries(path, top=1)] == ["000001"]

    def test_plans(self, path: Path) -> None:
        with Store(path, SETTINGS) as store, closing(sqlite3.connect(path)) as connection:
            lines(store, "sample", 0, 20_000, "", 1)
            for query in QUERIES:
                plan = str(connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())
                assert "INDEX" in plan
                assert "SCAN langevin_xtal_work" not in plan
                assert "TEMP B-TREE" not in plan, query
                assert ("state" not in plan) or ("id=?" in plan) or "GROUP" in query, plan

    def test_plans_in_postgresql(self, address: str) -> None:
        with Store(address, SETTINGS) as store:
            lines(store, "sample", 0, 20_000, "", 1)
            with store._transaction() as cursor:
                cursor.execute("ANALYZE")
                cursor.execute("SET LOCAL enable_seqscan = off")  # the tables of rows are empty
                for query in QUERIES:
                    cursor.execute(f"EXPLAIN {query}")
                    plan = "\n".join(line for (line,) in cursor.fetchall())
                    assert "Index" in plan
                    assert "Seq Scan" not in plan, plan

    def test_an_older_store_gets_the_indexes(self, path: Path) -> None:
        fill(path, 3)
        names = ("open", "free", "held", "states", "above")
        query = "SELECT name FROM sqlite_master WHERE type = 'index'"
        with closing(sqlite3.connect(path)) as connection, connection:
            for name in names:
                connection.execute(f"DROP INDEX langevin_xtal_{name}")
        fill(path, 3)
        with closing(sqlite3.connect(path)) as connection:
            found = {name for (name,) in connection.execute(query)}
        assert {f"langevin_xtal_{name}" for name in names} <= found

    def test_claims_of_a_process_that_nobody_knows(self, path: Path) -> None:
        with Store(path, SETTINGS) as store:
            lines(store, "sample", 0, 3, "gone", 0)
        with Store(path, SETTINGS) as store:
            assert store.claim("sample", range(3), 3).units == [0, 1, 2]

    def test_a_silent_process_that_goes_on_is_known_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        silent = Store(path, SETTINGS)
        monkeypatch.setattr(Store, "_beat", lambda self: None)
        silent.__enter__()
        silent.claim("sample", range(9), 2)
        monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
        with Store(path, SETTINGS, lease=100.0) as other:
            other.claim("sample", range(9), 1)
            now[0] = 101.0
            assert other.claim("sample", range(9), 1).units == [0]
            assert silent.claim("sample", range(9), 3).units == [1, 3, 4]
            assert other.claim("sample", range(9), 9).units == [5, 6, 7, 8]  # it lives
        silent.__exit__(None, None, None)


class TestListedUnits:
    """Claims of the later stages look at what is next, not at the whole stage."""

    def test_each_row_is_read_a_few_times(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(path, 600)
        read: list[int] = []

        def counted(data: Any, number: int | None = None) -> Row:
            read.append(0)
            return from_data(data, number)

        for module in ("store", "tables"):
            monkeypatch.setattr(f"langevin_xtal.search.{module}.from_data", counted)
        with Store(path, SETTINGS) as store:
            units = list(range(600))
            while found := store.claim("filter", units, 10).units:
                rows = store.rows(found)
                assert [each.index for each in rows] == found
                store.settle_each("filter", {k: Change({"filtered": True}) for k in found})
            assert store.claim("filter", units, 10) == ([], 600, 0)
        assert len(read) == 1200  # once to work on it, once to change it

    def test_a_claim_reads_as_much_however_long_the_list(self, path: Path) -> None:
        with Store(path, SETTINGS) as store, closing(sqlite3.connect(path)) as connection:
            with connection:
                connection.executemany(
                    "INSERT INTO langevin_xtal_work VALUES ('filter', ?, '', 1, NULL)",
                    [(k,) for k in range(30_000)],
                )
            units = list(range(60_000))
            assert store.claim("filter", units, 2) == ([30_000, 30_001], 30_000, 30_000)
            lines: list[int] = []
            state = store._claims.state
            store._claims.state = lambda *a: lines.append(len(a[2])) or state(*a)  # type: ignore[method-assign,func-returns-value]
            for k in range(30_002, 30_040, 2):
                assert store.claim("filter", units, 2).units == [k, k + 1]
            assert max(lines) <= LOOK
            assert len(lines) <= 2 * 19
            query = (
                "SELECT unit, owner, done FROM langevin_xtal_work WHERE stage = 'x' "
                "AND unit IN (1, 2)"
            )
            plan = str(connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())
            assert "SEARCH" in plan
            assert "SCAN" not in plan

    def test_in_their_order_and_around_others(self, path: Path) -> None:
        fill(path, 9)
        units = [7, 2, 5, 0, 8]
        with Store(path, SETTINGS) as store, Store(path, SETTINGS) as other:
            assert other.claim("relax", [2, 0], 2).units == [2, 0]
            assert store.claim("relax", units, 2) == ([7, 5], 0, 5)
            store.settle_each("relax", {7: Change({})})
            other.settle_each("relax", {0: Change({})})
            assert store.claim("relax", units, 9) == ([8], 2, 3)
            store.settle_each("relax", {5: Change({}), 8: Change({})})
            assert store.claim("relax", units, 9) == ([], 4, 1)
            other.__exit__(None, None, None)  # leaves 2 unfinished
            assert store.claim("relax", units, 9) == ([2], 4, 1)
            store.settle_each("relax", {2: Change({})})
            assert store.claim("relax", units, 9) == ([], 5, 0)

    def test_a_claim_that_could_not_be_stored_is_made_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(path, 4)
        units = list(range(4))
        with Store(path, SETTINGS) as store:
            with monkeypatch.context() as patch:
                patch.setattr(claims.Claims, "_take", lambda *given: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    store.claim("filter", units, 3)
            assert store.claim("filter", units, 3) == ([0, 1, 2], 0, 4)

    def test_a_line_of_another_candidate(self, path: Path) -> None:
        fill(path, 3)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE langevin_xtal_work SET entry = 1 WHERE unit = 2")
        with Store(path, SETTINGS) as store, pytest.raises(DataError, match="not 2"):
            store.rows([2])


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the record of the first row."""
    with closing(sqlite3.connect(path)) as connection, connection:
        number, data = connection.execute("SELECT id, data FROM systems").fetchone()
        outer = json.loads(data[int.from_bytes(data[:8], "little") :])
        record = json.loads(outer["record"])
        change(record)
        text = json.dumps({"record": json.dumps(record)}).encode()
        connection.execute(
            "UPDATE systems SET data = ? WHERE id = ?", ((8).to_bytes(8, "little") + text, number)
        )


class TestEdits:
    @pytest.mark.parametrize(
        "change",
        [
            {"index": -1}, {"index": "x"}, {"index": True}, {"index": 2**60}, {"group": 0},
            {"group": 231}, {"group": None}, {"request": 3}, {"facts": []}, {"provenance": "x"},
            {"sampled": [[[float("nan")] * 3] * 3, [[0, 0, 0]], [11]]},
            {"sampled": [[[1e-7, 0, 0], [0, 1e5, 0], [0, 0, 1e5]], [[0, 0, 0]], [11]]},
            {"sampled": [[[4, 0, 0], [0, 4, 0], [4, 4, 0]], [[0, 0, 0]], [11]]},
            {"sampled": [[[4, 0, 0], [0, 4, 0], [0, 0, 4]], [[0, 0, 0]], [119]]},
            {"sampled": [[[4, 0, 0], [0, 4, 0], [0, 0, 4]], [[0, 0]], [11]]},
            {"sampled": [[[4, 0, 0], [0, 4, 0], [0, 0, 4]], [[0, 0, "x"]], [11]]},
            {"sampled": [[[4, 0, 0], [0, 4, 0], [0, 0, 4]], [], []]},
            {"sampled": None, "facts": {"filtered": True}},
            {"facts": {"energy": "low"}}, {"facts": {"energy": float("inf")}},
            {"facts": {"duplicate_of": 0.5}}, {"facts": {"found_group": 300}},
            {"facts": {"reason": 3}}, {"facts": {"known": ["x"]}}, {"facts": {"same_as": -1}},
        ],
    )  # fmt: skip
    def test_of_a_row_are_refused(self, path: Path, change: dict[str, Any]) -> None:
        fill(path, 2)
        edit(path, lambda record: record.update(change))
        for use in (read_rows, read_entries, read_summary):
            with pytest.raises(DataError, match="a row of the store is damaged: row 1 "):
                use(path)

    @pytest.mark.parametrize(
        "change", ["name = 'x' WHERE name = 'version'", "value = 'x' WHERE name = 'version'"]
    )
    def test_of_what_ase_says_of_itself(self, path: Path, change: str) -> None:
        fill(path, 1)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE information SET {change}")
        with pytest.raises(DataError, match="table of information"):
            Store(path, SETTINGS)

    def test_a_candidate_twice(self, path: Path) -> None:
        fill(path, 2)
        edit(path, lambda record: record.update(index=1))
        with pytest.raises(DataError, match="candidate 1 is there twice"):
            read_rows(path)

    @pytest.mark.parametrize("text", ["", "{", "nan", "[" * 100_000, "null"])
    def test_of_settings(self, path: Path, text: str) -> None:
        fill(path, 1)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE information SET value = ? WHERE name = 'langevin_xtal'",
                               (text,))  # fmt: skip
        for use in (lambda: Store(path, SETTINGS), lambda: read_rows(path)):
            with pytest.raises(DataError, match=r"settings of the store are damaged|format None"):
                use()

    def test_of_tables(self, path: Path) -> None:
        for table, column in (("work", "unit"), ("owner", "pid"), ("stage", "seconds")):
            path.unlink(missing_ok=True)
            with Store(path, SETTINGS) as store:
                store.claim("sample", range(3), 3)
                store.add([row(0)], seconds=1.0)
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("INSERT OR IGNORE INTO langevin_xtal_owner VALUES (?, ?, ?, ?)",
                                   ("x", claims.this_host(), 1, 1))  # fmt: skip
                connection.execute(f"UPDATE langevin_xtal_{table} SET {column} = 'x' || rowid")

            def use() -> None:
                read_summary(path)
                with Store(path, SETTINGS) as store:
                    store.claim("sample", range(9), 3)
                    store.done("sample")

            with pytest.raises(DataError, match=r"table of .* is damaged"):
                use()

    def test_databases_of_others_are_not_added_to(self, tmp_path: Path) -> None:
        path = tmp_path / "places.sqlite"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE moz_places (url TEXT)")
        before = path.read_bytes()
        with pytest.raises(DataError, match="database of something else"):
            Store(path, SETTINGS)
        assert path.read_bytes() == before

    def test_a_view_that_does_not_end(self, path: Path) -> None:
        fill(path, 1)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "CREATE VIEW v AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) "
                "SELECT x FROM r"
            )
        with pytest.raises(DataError, match="database of something else"):
            Store(path, SETTINGS)
