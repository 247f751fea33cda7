"""Attacks on commands and files, each in a process of its own with limits of time and memory.

For ``test_attacks.py``, which does a few of each kind, and ``scripts/attack.py``, which does many.
A process is forked from one that has imported everything, so that a try takes a fraction of a
second; everything is drawn from a seed.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from langevin_xtal.cli import EXIT_CODES, main

SECONDS = 20.0
"""A command that takes longer is interrupted, and has to end then."""
STOP_SECONDS = 4.0
"""From the signal to the end: two seconds, and two more for a busy machine."""
MEBIBYTES = 1500
"""Of address space, on top of what the imports take."""
SECRET = "Tr0ub4dor-hunter2"
CRASHED, BROKE = "crash", "traceback"
OURS = 70
"""Exit code of a child in which an exception came through."""


@dataclass
class Try:
    """One command and what was wrong with it; ``fault`` is empty where nothing was."""

    kind: str
    what: str
    code: int
    seconds: float
    mebibytes: float
    out: str
    err: str
    fault: str = ""


@dataclass
class Tally:
    """Tries and faults by kind."""

    tries: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)
    mebibytes: float = 0.0
    seconds: float = 0.0
    """Of the slowest."""

    def add(self, done: Try) -> Try:
        """Count a try."""
        self.note(done.kind, done.fault and f"{done.fault}: {done.what}: {done.err[-400:]}")
        self.mebibytes = max(self.mebibytes, done.mebibytes)
        self.seconds = max(self.seconds, done.seconds)
        return done

    def note(self, kind: str, fault: str = "") -> None:
        """Count a try of another sort."""
        self.tries[kind] += 1
        if fault:
            self.faults.setdefault(kind, []).append(fault)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "tries": sum(self.tries.values()),
            "failures": sum(map(len, self.faults.values())),
            "by_kind": {
                kind: {"tries": self.tries[kind], "failures": len(self.faults.get(kind, ()))}
                for kind in sorted(self.tries)
            },
            "slowest_seconds": round(self.seconds, 1),
            "most_mebibytes_beyond_imports": round(self.mebibytes),
            "failures_reported": {
                kind: [_without_folders(fault) for fault in reported]
                for kind, reported in self.faults.items()
            },
        }


def _without_folders(text: str) -> str:
    """A message without the folders of this computer."""
    return re.sub(r"/[^\s'\"]*/(?=(?:langevin_xtal|tests|site-packages)/)", "", text)


# -- one process


def warm_up() -> None:
    """Import what commands import, so that forked processes need not."""
    import torch

    import langevin_xtal.evaluation.protocol
    import langevin_xtal.report.search
    import langevin_xtal.sampling.sample
    import langevin_xtal.search.campaign  # noqa: F401
    from langevin_xtal.cli import COMMANDS

    for place in COMMANDS.values():
        import_module(place.partition(":")[0])
    torch.set_num_threads(1)


def start(
    arguments: Sequence[str],
    folder: Path,
    *,
    mebibytes: int | None = MEBIBYTES,
    before: Callable[[], None] | None = None,
) -> Child:
    """Fork a process that runs a command in ``folder``."""
    sys.stdout.flush()
    sys.stderr.flush()
    pipes = os.pipe(), os.pipe()
    # a signal before the program listens ends it as it would end any
    early = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, early)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
        for _, writer in pipes:
            os.close(writer)
        return Child(child, pipes[0][0], pipes[1][0], _pages(1, child) / (1 << 20))
    code = OURS
    try:
        os.setsid()
        atexit._clear()  # what removes the parent's temporary folders, for one
        warnings.simplefilter("ignore")
        for number, (_, writer) in zip((1, 2), pipes, strict=True):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)  # what is printed waits there
            os.dup2(writer, number)
        for ends in pipes:
            for end in ends:
                os.close(end)
        sys.stdout = _stream(1)
        sys.stderr = _stream(2)
        os.chdir(folder)
        for each in early:
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
        if mebibytes is not None:
            most = _pages(0) + (mebibytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if before is not None:
            before()
        main([str(a) for a in arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def obey_permissions() -> None:
    """Let this process, if it is root's, heed permissions as others do."""
    if os.geteuid() != 0:
        return

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")
        )

    library = ctypes.CDLL(None, use_errno=True)
    header, sets = Header(0x20080522, 0), (Sets * 2)()
    if library.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    for capability in (1, 2, 3):  # what overrides reading, writing, searching and ownership
        sets[0].effective &= ~(1 << capability)
        sets[0].permitted &= ~(1 << capability)
    if library.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")


def _stream(number: int) -> Any:
    return os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


@dataclass
class Child:
    """A forked process, the leader of its session."""

    number: int
    out: int  #: where what it prints is read
    err: int
    begin: float  #: memory at the start [MiB]: what this process had imported and changed

    def ended(self, seconds: float) -> tuple[int, float] | None:
        """Exit code (negative: the signal) and peak of memory [MiB], None when it runs on."""
        until = time.monotonic() + seconds
        while True:
            done, status, usage = os.wait4(self.number, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024
            if time.monotonic() > until:
                return None
            time.sleep(0.01)

    def signal(self, which: int) -> None:
        """To all of the session."""
        with suppress(ProcessLookupError):
            os.killpg(self.number, which)

    def printed(self) -> tuple[str, str]:
        """Output and errors, once it has ended."""
        texts = []
        for end in (self.out, self.err):
            os.set_blocking(end, False)
            data = b""
            with suppress(BlockingIOError):
                while part := os.read(end, 1 << 16):
                    data += part
            os.close(end)
            texts.append(data.decode("utf-8", "replace"))
        return texts[0], texts[1]


def command(
    kind: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    seconds: float = SECONDS,
    mebibytes: int | None = MEBIBYTES,
    before: Callable[[], None] | None = None,
    codes: Sequence[int] = (0, 1, 2),
) -> Try:
    """Run a command to its end, or interrupt it, and say what was wrong."""
    began = time.monotonic()
    child = start(arguments, folder, mebibytes=mebibytes, before=before)
    found, stopped, fault = child.ended(seconds), False, ""
    if found is None:
        stopped = True
        child.signal(signal.SIGINT)
        found = child.ended(STOP_SECONDS)
        if found is None:
            fault = "hang"
            child.signal(signal.SIGKILL)
            found = child.ended(60.0)
    assert found is not None
    code, peak = found
    out, err = child.printed()
    what = " ".join(map(str, arguments))
    took = time.monotonic() - began
    done = Try(kind, what, code, took, max(0.0, peak - child.begin), out, err, fault)
    done.fault = fault or _fault(done, codes, stopped)
    return done


def _fault(done: Try, codes: Sequence[int], stopped: bool) -> str:
    if "Traceback (most recent call last)" in done.err or done.code == OURS:
        return BROKE
    if done.code < 0:
        return f"{CRASHED} ({done.code})"
    if stopped:
        return "" if done.code == 130 or done.code in codes else f"code {done.code} when stopped"
    if done.code not in codes or done.code not in EXIT_CODES:
        return f"code {done.code}"
    if SECRET in done.out + done.err:
        return "a password was printed"
    if any(c in done.out + done.err for c in "\x1b\x07\x9b"):
        return "control characters were printed"
    reported = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    if done.code and len(reported) != 1:
        return f"{len(reported)} sentences of an error"
    return ""


def _pages(which: int, process: int | str = "self") -> int:
    """Bytes of a process: 0 of address space, 1 in memory."""
    with open(f"/proc/{process}/statm") as stream:
        return int(stream.read().split()[which]) * os.sysconf("SC_PAGE_SIZE")


# -- what is there before and after


def digests(folder: Path) -> dict[str, str]:
    """Relative path to digest of every file, and of the target of every link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leaks(folder: Path) -> list[str]:
    """Files that hold the password."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes()
    ]


# -- damage

TOKENS = (
    *(b"nan", b"inf", b"-inf", b"1e308", b"-1", b"0", b"99999999999999999999", b"1e-300"),
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"'", b'"', b"\n", b"{", b"]", b"=1+1", b"\x1b[2J"),
    *(b"../../x", b"None", b"1" * 400, "Ω∞\u202e".encode()),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 2**31, 2**63 - 1, 1e308, 1e-300, float("nan"), float("inf")),
    *("", "x", "nan", "\x1b[31m", "=cmd()", "\ud800", "0" * 1000, [], {}, [[]], [None] * 3),
    *([[0, 0, 0]] * 3, {"a": 1}, [1e300, "x"], b"\x00\x01", "é" * 50),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes."""
    buffer = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(buffer) + 1)
        kind = rng.randrange(8)
        if kind == 0 and buffer:
            buffer[place % len(buffer)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del buffer[place:]
        elif kind == 2:
            del buffer[place : place + rng.randint(1, 40)]
        elif kind == 3:
            token = rng.choice(TOKENS)
            buffer[place:place] = token
        elif kind == 4:
            token = rng.choice(TOKENS)
            buffer[place : place + len(token)] = token
        elif kind == 5:
            length = rng.randint(1, 200)
            buffer[place:place] = buffer[max(0, place - length) : place]
        elif kind == 6:
            buffer[place : place + rng.randint(1, 64)] = bytes(rng.randint(1, 64))
        else:
            numbers = list(re.finditer(rb"-?\d+\.?\d*(?:[eE][-+]?\d+)?", bytes(buffer[:200_000])))
            if numbers:
                found = rng.choice(numbers)
                buffer[found.start() : found.end()] = rng.choice(TOKENS)
    return bytes(buffer)


def damaged_json(value: Any, rng: random.Random, times: int = 1) -> Any:
    """A copy with some values, keys or items replaced."""
    value = json.loads(json.dumps(value))
    for _ in range(times):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        if rng.random() < 0.15:
            del holder[key]
        elif rng.random() < 0.1 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "energy", "same_as", "released"))] = holder.pop(key)
        else:
            holder[key] = rng.choice([v for v in VALUES if not isinstance(v, bytes)])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def damage_store(path: Path, rng: random.Random) -> str:
    """Edit an SQLite store; what was done."""
    with closing(sqlite3.connect(path)) as connection, connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            if not name.startswith("sqlite_")
        ]
        if rng.random() < 0.5:
            rows = connection.execute("SELECT id, data FROM systems").fetchall()
            if rows:
                number, data = rng.choice(rows)
                head = int.from_bytes(data[:8], "little")
                outer = json.loads(data[head:])
                record = damaged_json(json.loads(outer["record"]), rng, rng.randint(1, 3))
                outer["record"] = json.dumps(record)
                text = json.dumps(outer).encode()
                blob = (8).to_bytes(8, "little") + text
                connection.execute("UPDATE systems SET data = ? WHERE id = ?", (blob, number))
                return f"record of row {number}"
        if rng.random() < 0.3:
            ((text,),) = connection.execute(
                "SELECT value FROM information WHERE name = 'langevin_xtal'"
            ).fetchall()
            settings = damaged_json(json.loads(text), rng)
            connection.execute(
                "UPDATE information SET value = ? WHERE name = 'langevin_xtal'",
                (json.dumps(settings),),
            )
            return "settings"
        table = rng.choice(tables)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column = rng.choice(columns)
        value = rng.choice([v for v in VALUES if isinstance(v, (type(None), int, float, bytes))])
        if rng.random() < 0.3:
            value = rng.choice(["x", "", "nan", "0" * 100])
        kind = rng.randrange(4)
        with suppress(sqlite3.Error, OverflowError):
            if kind == 0:
                connection.execute(f"DELETE FROM {table} WHERE rowid % 2 = 0")
                return f"half of {table}"
            if kind == 1:
                connection.execute(f"DROP TABLE {table}")
                return f"no {table}"
            if kind == 2:
                connection.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO strange")
                return f"{table}.{column} renamed"
            connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
        return f"{table}.{column} = {value!r}"


def damage_checkpoint(path: Path, rng: random.Random) -> None:
    """Change the header of a safetensors file, or bytes of it."""
    data = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(damaged(data, rng))
        return
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.7:
        own = json.loads(header["__metadata__"]["langevin_xtal"])
        own = damaged_json(own, rng)
        if isinstance(own, dict) and rng.random() < 0.7:
            own.pop("header_checksum", None)  # as if an older version had written it
        header["__metadata__"]["langevin_xtal"] = json.dumps(own)
    else:
        header = damaged_json(header, rng)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def damage_cache(path: Path, rng: random.Random) -> None:
    """Change entries of a cache, or bytes of the file."""
    if rng.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), rng))
        return
    with closing(sqlite3.connect(path)) as connection, connection:
        for kind, key, data in connection.execute(
            "SELECT kind, key, data FROM feature"
        ).fetchall():
            values = np.frombuffer(data or b"", "<f8").copy()
            what = rng.randrange(5)
            if what == 0:
                values = values[: rng.randrange(len(values) + 1)]
            elif what == 1 and len(values):
                values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, -1, 1e300, 1e18])
            elif what == 2:
                values = np.concatenate([values, values])
            new = values.tobytes() + (b"x" if what == 3 else b"")
            connection.execute(
                "UPDATE feature SET data = ? WHERE kind = ? AND key = ?", (new, kind, key)
            )


# -- hostile words

ADDRESSES = (
    f"postgresql://me:{SECRET}@localhost:1/db",
    f"PostgreSQL://me:{SECRET}@localhost:1/db",
    f"postgres://me:{SECRET}@localhost:1/db?sslmode=disable",
    f"postgresql:/me:{SECRET}@localhost:1/db",
    f"postgresql://me:{SECRET}/x@localhost:1/db",
    f"postgresql://me:{SECRET}@x@localhost:1/db",
    f"postgresql://me:{SECRET}%zz@localhost:1/db",
    f"postgresql://me:{SECRET}%40@localhost:1/db",
    f"postgresql://localhost:1/db?user=me&password={SECRET}",
    f"postgresql://me:{SECRET}#?x@localhost:1/db",
    f"postgresql+psycopg2://me:{SECRET}@localhost:1/db",
    f"postgresql://me:{SECRET}",
    f"host=localhost port=1 user=me password={SECRET}",
)
NAMES = (
    *("-x", "--help", "=1+1", "+a", "@b", "a b", "a\tb", "é", "a\nb", "\x1b[2Jred", "x" * 250),
    *("a;rm -rf x", "$(touch x)", "`x`", "a,b", "a|b", "'", '"', "%s%n", "‮abc", "CON", "a.b.c"),
    *("a@0", "~", "a#b", "\udc80bytes"),
)
NUMBERS = ("-1", "0", "1", "2", "3", "0.5", "1e9", "1000000000", "nan", "inf", "x", "", "１", "²")
WORDS = (
    *("62", "Fm-3m", "all", "common", "cubic", "1-230", "0", "231", "Cu", "Cu,Si", "Xx", "Cu:2"),
    *("NaCl", "Na0Cl", "Cu2KSi", "Cu:1,Si:1", "1,2", "4.0,4.0,4.0", "Cu:0,0,0", "env", "chgnet"),
    *("ase.calculators.emt:EMT", "os:system", "no.such:thing", "/dev/null", "/dev/full", "."),
    *("/no/such/folder/x", "small", "mp20", *ADDRESSES[:3], *NAMES[:10]),
)


def random_line(rng: random.Random, files: Sequence[str]) -> list[str]:
    """A command with random options and values."""
    import click

    from langevin_xtal.cli import cli

    names: list[str] = []
    found: click.Command = cli
    while isinstance(found, click.Group):
        context = click.Context(found)
        names.append(rng.choice(found.list_commands(context)))
        chosen = found.get_command(context, names[-1])
        assert chosen is not None
        found = chosen
    line = [*names]
    for parameter in found.params:
        if isinstance(parameter, click.Argument):
            line += [rng.choice([*files, *WORDS]) for _ in range(rng.randint(0, 2))]
        elif rng.random() < (0.7 if parameter.required else 0.25):
            line.append(rng.choice(parameter.opts))
            if not getattr(parameter, "is_flag", False):
                kind = parameter.type.name
                pool: Sequence[str] = [*WORDS, *files]
                if "integer" in kind or "float" in kind:
                    pool = NUMBERS
                elif isinstance(parameter.type, click.Choice):
                    pool = [*parameter.type.choices, "x"]
                line.append(rng.choice(pool))
    return line


def clean(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
