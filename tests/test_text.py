"""Text that leaves the program: no passwords, no keys, nothing that steers a terminal or runs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langevin_xtal import text
from langevin_xtal.cli import run
from langevin_xtal.cli.options import secret
from langevin_xtal.files import write_rows
from langevin_xtal.text import (
    address_of,
    cell_text,
    hide_secrets,
    is_address,
    learn_secrets,
    printable,
    unclear_password,
)
from tests.attacks import ADDRESSES, SECRET


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing learnt in one test is known in another."""
    monkeypatch.setattr(text, "_secrets", set())


class TestSecrets:
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_of_addresses(self, address: str) -> None:
        assert SECRET in address
        shown = hide_secrets(f"store {address} cannot be used: '{address}'")
        assert SECRET not in shown
        assert "cannot be used" in shown

    @pytest.mark.parametrize(
        "plain",
        [
            *("a:b@c.db", "postgresql://host:5432/db", "postgresql://me@host/db?host=/tmp"),
            *("postgresql://[::1]:5432/db", "https://next-gen.materialsproject.org/api", "C:/a:b"),
            *("Cu:2,Si:1 in Pnma (62)", "x = 1; y: 2", "key 'a' is missing", "6 tokens: more"),
        ],
    )
    def test_other_text_stays(self, plain: str) -> None:
        assert hide_secrets(plain) == plain

    def test_who_and_where_are_shown(self) -> None:
        assert hide_secrets("postgresql://me:a@b/c@host:1/db") == "postgresql://me:***@host:1/db"

    def test_those_learnt_are_hidden_by_themselves(self) -> None:
        learn_secrets(["x", "postgresql://me:p%40ss/w rd@host/db?sslpassword=other-one"])
        for part in ("p%40ss/w rd", "p@ss/w rd", "other-one"):
            assert part not in hide_secrets(f"invalid value {part!r} for option")

    def test_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MP_API_KEY", "0123456789abcdef0123456789abcdef")
        assert secret("env") == "0123456789abcdef0123456789abcdef"
        assert secret("another-key-of-mine") == "another-key-of-mine"
        shown = hide_secrets("header 0123456789abcdef0123456789abcdef, another-key-of-mine")
        assert shown == "header ***, ***"

    @given(
        password=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=6)
    )
    def test_any_password(self, password: str) -> None:
        address = f"postgresql://me:{password}@localhost:5432/db"
        if password.strip("@") and password not in "postgresql://me:@localhost:5432/db":
            assert password not in hide_secrets(f"cannot connect to {address} now")

    @pytest.mark.parametrize("address", ADDRESSES)
    def test_in_errors(
        self, address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for line in (
            *(["relax", address], ["hull", address], ["phonons", address], ["report", address]),
            *(["data", "prepare", address, "--out", "x.lxd"], ["data", "info", address]),
            ["evaluate", address, "--reference", "x.lxd"],
            ["evaluate", "x", "--reference", address],
            ["sample", "--elements", "Cu", "--sg", "225", "--out", address],
            ["search", "--elements", "Cu", "--sg", "225", "--reference", address],
            ["model", "info", address],
        ):
            assert run(line) in (1, 2)
            reported = capsys.readouterr()
            assert SECRET not in reported.out + reported.err
            assert reported.err.startswith("Error: ")
        assert not list(tmp_path.iterdir())


class TestAddresses:
    def test_are_recognised(self) -> None:
        for source in ("postgresql://h/d", "Postgres://h/d", "postgresql:/h/d"):
            assert is_address(source)
            assert address_of(source) == "postgresql://h/d"
        for source in ("s.db", "postgresql.db", "/tmp/postgresql:/x", "x postgresql://h"):
            assert not is_address(source)

    def test_passwords_that_others_would_see_parts_of(self) -> None:
        for password in ("a/b", "a@b", "a#b", "a%zz", "a:b"):
            assert unclear_password(f"postgresql://me:{password}@host/db")
        assert not unclear_password("postgresql://me:a%2Fb-c.d@host/db")

    @pytest.mark.parametrize(
        "line",
        [
            ["sample", "--elements", "Cu", "--sg", "225", "--out", "postgresql://h/d"],
            ["data", "info", "PostgreSQL://h/d"],
            ["evaluate", "postgresql://h/d", "--reference", "x"],
        ],
    )
    def test_are_refused_where_files_are_written_or_read(
        self, line: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(line) == 2
        assert "is the address of a database; " in capsys.readouterr().err


class TestTerminal:
    def test_what_steers_it_is_replaced(self) -> None:
        assert printable("a\x1b[31mb\x07\x9b\u202e\t\u00a0c\nd") == "a?[31mb????  c\nd".replace(
            "????", "???"
        )

    @given(st.text())
    def test_nothing_steers_it(self, anything: str) -> None:
        assert all(c == "\n" or c.isprintable() for c in printable(anything))


class TestCells:
    @pytest.mark.parametrize("begin", list("=+-@＝＠"))
    def test_what_a_spreadsheet_runs(self, begin: str) -> None:
        assert cell_text(f"{begin}cmd|' /c calc'!A1") == f"'{begin}cmd|' /c calc'!A1"

    @pytest.mark.parametrize("number", ["-4.25", "+1", "-1e-5", "-.5", "0", "-"])
    def test_numbers_stay(self, number: str) -> None:
        assert cell_text(number) == number

    @given(st.lists(st.text(), min_size=1, max_size=4))
    def test_any_cell(self, cells: list[str]) -> None:
        names = [f"c{k}" for k in range(len(cells))]
        stream = io.StringIO()
        write_rows(stream, names, [dict(zip(names, cells, strict=True))])
        header, row = csv.reader(io.StringIO(stream.getvalue()))
        assert header == names
        for cell in row:
            assert all(c.isprintable() for c in cell)
            assert len(cell) < 2 or not cell.startswith(("=", "@", "＝", "＋", "－", "＠"))
            if len(cell) > 1 and cell[0] in "+-":
                float(cell)
