"""What is attacked, and one function for each kind of attack; see :mod:`tests.attacks`."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator

from langevin_xtal.errors import LangevinXtalError
from langevin_xtal.search.rows import to_json
from langevin_xtal.search.store import read_rows
from tests import attacks
from tests.attacks import Tally, Try, clean, command, damaged, digests, leaks
from tests.postgres import Server

POTENTIAL = "tests.arena:Flat"
EMT = "ase.calculators.emt:EMT"
STORE, FOLDER, PACKED, CHECKPOINT, CACHE = "s.db", "sampled", "p.lxd", "m.safetensors", "cache"
# fmt: off
READERS: tuple[tuple[str, ...], ...] = (
    ("export", "xyz", "{}", "--out", "{out}/x.xyz"),
    ("export", "cif", "{}", "--out", "{out}/cif"),
    ("report", "{}", "--out", "{out}/r.html"),
    ("data", "prepare", "{}", "--out", "{out}/p.lxd", "--workers", "1"),
    (
        "relax",
        "{}",
        "--out",
        "{out}/r",
        "--potential",
        POTENTIAL,
        "--steps",
        "1",
        "--workers",
        "1",
    ),
    ("data", "info", "{}"),
    ("model", "info", "{}"),
)
"""Commands that read a file; they write to ``{out}`` only."""
# fmt: on


class Flat(Calculator):
    """No forces, and an energy that depends on the volume: relaxed at once."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms: Any = None, properties: Any = None, changes: Any = None) -> None:
        """All of it."""
        super().calculate(atoms, properties or ["energy"], changes or [])
        count, volume = len(self.atoms), self.atoms.get_volume()
        self.results = {
            "energy": count * (math.cos(volume / count) - 3.0),
            "forces": np.zeros((count, 3)),
            "stress": np.zeros(6),
        }


class Arena:
    """Sound files of every kind in a folder, and attacks on copies of them."""

    def __init__(
        self, root: Path, model: str, seed: int, tally: Tally, server: Server | None = None
    ) -> None:
        self.root, self.model, self.seed, self.tally = root, model, seed, tally
        self.server = server
        self.sound, self.place = root / "sound", root / "place"
        os.environ["HOME"] = str(root)
        os.environ["LANGEVIN_XTAL_CACHE"] = str(root / "home-cache")
        self._make()

    def rng(self, kind: str, number: int) -> random.Random:
        """The random numbers of a try."""
        return random.Random(f"{self.seed} {kind} {number}")

    # -- what is there

    def sample(self, out: Path | str, count: int = 6) -> list[str]:
        """A command that samples for a second or less."""
        line = f"--sites Na:1,Cl:1 --sg 225,221 --seed 4 --n {count} --model {self.model}"
        more = "--levels 4 --threads 1 --min-distance 0.05 --batch-size 2 --attempts 2"
        return ["sample", *line.split(), *more.split(), "--out", str(out)]

    def search(self, store: Path | str) -> list[str]:
        """A command that searches for a second or two."""
        line = f"--elements Cu,Au --sg 221,123 --max-sites 2 --max-samples 6 --model {self.model}"
        more = f"--levels 3 --workers 1 --relax --potential {POTENTIAL} --seed 5"
        return ["search", *line.split(), *more.split(), "--out", str(store)]

    def _make(self) -> None:
        from ase import Atoms
        from ase.db import connect
        from ase.io import write

        sound = clean(self.sound)
        for line in (self.sample(FOLDER), self.search(STORE)):
            done = command("made", line, sound, seconds=300, mebibytes=None)
            assert done.code == 0, done
        crystals = [
            Atoms(symbols, cell=[a, a, a], scaled_positions=[[0, 0, 0], [0.5] * 3], pbc=True)
            for symbols, a in (("CuAu", 3.0), ("CsCl", 4.12), ("NiAl", 2.9))
        ]
        (sound / "cifs").mkdir()
        for k, atoms in enumerate(crystals):
            write(sound / "cifs" / f"{k}.cif", atoms)
        write(sound / "one.cif", crystals[0])
        write(sound / "some.extxyz", crystals)
        write(sound / "POSCAR", crystals[0], format="vasp")
        with connect(sound / "ase.db", append=False) as database:
            for atoms in crystals:
                database.write(atoms)
        with (sound / "table.csv").open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["material_id", "cif", "e_above_hull"])
            for k in range(3):
                rows.writerow([f"m{k}", (sound / "cifs" / f"{k}.cif").read_text(), 0.1 * k])
        from pymatgen.io.ase import AseAtomsAdaptor

        structures = [AseAtomsAdaptor.get_structure(atoms).as_dict() for atoms in crystals]
        (sound / "some.json").write_text(json.dumps(structures, default=str))
        shutil.copy(self.model, sound / CHECKPOINT)
        for line in (
            ["data", "prepare", "table.csv", "--out", PACKED, "--workers", "1"],
            ["relax", "one.cif", "--out", "relaxed", "--potential", POTENTIAL, "--cache", CACHE,
             "--workers", "1", "--steps", "2"],
            ["export", "vasp", STORE, "--out", "vasp"],
        ):  # fmt: skip
            done = command("made", line, sound, seconds=300, mebibytes=None)
            assert done.code == 0, done
        self.whole = digests(sound)
        self.rows = rows_of(sound / STORE)
        self.times = {
            "sample": self._time(self.sample("t")), "search": self._time(self.search("t.db"))
        }  # fmt: skip

    def _time(self, line: Sequence[str]) -> float:
        return command("made", line, clean(self.place), seconds=300, mebibytes=None).seconds

    def copied(self, *names: str) -> Path:
        """A folder with copies of some of what there is."""
        folder = clean(self.place)
        for name in names:
            source = self.sound / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
        return folder

    def _read(self, kind: str, line: Sequence[str], name: str, folder: Path, what: str) -> Try:
        """Run a reader; nothing may be written but to its output."""
        (folder / "out").mkdir(exist_ok=True)
        before = digests(folder)
        done = command(kind, [part.format(name, out="out") for part in line], folder)
        after = {k: v for k, v in digests(folder).items() if not k.startswith("out/")}
        done.what += f" [{what}]"
        if not done.fault and after != before:
            done.fault = "wrote where it reads"
        if not done.fault and leaks(folder / "out"):
            done.fault = "a password in a file"
        return self.tally.add(done)

    # -- attacks

    def mutated_file(self, number: int) -> Try:
        """A file of any format with some bytes changed."""
        rng = self.rng("mutated file", number)
        name = rng.choice(
            (
                *("one.cif", "some.extxyz", "POSCAR", "ase.db", "table.csv", "some.json"),
                *(PACKED, PACKED, STORE, "sampled/candidates.csv", "sampled/run.json"),
            )
        )
        top = name.split("/")[0]
        folder = self.copied(top)
        path = folder / name
        path.write_bytes(damaged(path.read_bytes(), rng))
        line = rng.choice(READERS)
        return self._read("mutated file", line, top, folder, f"{name} {number}")

    def edited_store(self, number: int) -> Try:
        """A store with a value, a row, a table or a setting changed."""
        rng = self.rng("edited store", number)
        folder = self.copied(STORE)
        what = attacks.damage_store(folder / STORE, rng)
        if rng.random() < 0.5:
            return self._read("edited store", rng.choice(READERS[:5]), STORE, folder, what)
        done = command("edited store", self.search(STORE), folder)
        done.what += f" [{what} {number}]"
        return self.tally.add(done)

    def edited_checkpoint(self, number: int) -> Try:
        """A model whose header or bytes were changed."""
        rng = self.rng("edited checkpoint", number)
        folder = self.copied(CHECKPOINT)
        attacks.damage_checkpoint(folder / CHECKPOINT, rng)
        line = ["model", "info", CHECKPOINT]
        if rng.random() < 0.7:
            line = [*self.sample("out", 1), "--model", CHECKPOINT]
        done = command("edited checkpoint", line, folder)
        done.what += f" [{number}]"
        return self.tally.add(done)

    def edited_cache(self, number: int) -> Try:
        """A cache with entries of another length or value: the work has to go on."""
        rng = self.rng("edited cache", number)
        folder = self.copied(CACHE, "one.cif")
        attacks.damage_cache(folder / CACHE / "features.sqlite", rng)
        line = ["relax", "one.cif", "--out", "r", "--potential", POTENTIAL, "--cache", CACHE,
                "--workers", "1", "--steps", "2"]  # fmt: skip
        done = command("edited cache", line, folder, codes=(0, 1))
        done.what += f" [{number}]"
        return self.tally.add(done)

    def edited_folder(self, number: int) -> Try:
        """A folder of samples or of an export with its records changed, and continued."""
        rng = self.rng("edited folder", number)
        if rng.random() < 0.5:
            folder, line = self.copied(FOLDER), self.sample(FOLDER, 8)
            path = folder / FOLDER / rng.choice(["run.json", "candidates.csv", "rejects.csv"])
        else:
            folder, line = self.copied("vasp", STORE), ["export", "vasp", STORE, "--out", "vasp"]
            path = rng.choice([*folder.glob("vasp/*/export.json"), folder / "vasp/manifest.csv"])
        if path.suffix == ".json" and rng.random() < 0.6:
            path.write_text(json.dumps(attacks.damaged_json(json.loads(path.read_text()), rng)))
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))
        done = command("edited folder", line, folder)
        done.what += f" [{path.name} {number}]"
        return self.tally.add(done)

    def hostile_name(self, number: int) -> Try:
        """Names of files, structures and outputs that mean something elsewhere."""
        rng = self.rng("hostile name", number)
        folder = self.copied("cifs")
        name = rng.choice(attacks.NAMES)
        with (folder / "t.csv").open("w", newline="", errors="surrogateescape") as stream:
            rows = csv.writer(stream)
            rows.writerow(["material_id", "cif"])
            rows.writerow([name, (folder / "cifs" / "0.cif").read_text()])
            rows.writerow([name + "2", "no cif"])
        file = "t.csv"
        with suppress(OSError, ValueError):
            target = folder / f"{name}.cif"
            shutil.copy(folder / "cifs" / "1.cif", target)
            file = rng.choice(["t.csv", f"./{name}.cif"])
        line = rng.choice([r for r in READERS if r[0] != "model"])
        done = self._read("hostile name", line, file.replace("{", "{{"), folder, repr(name))
        for table in (folder / "out").rglob("*.csv"):
            fault = formulas(table)
            if fault and not done.fault:
                done.fault = fault
                self.tally.note("hostile name", f"{fault}: {done.what}")
        return done

    def secret(self, number: int) -> Try:
        """Addresses with a password where a command takes a file, a store or a folder."""
        rng = self.rng("secret", number)
        folder = self.copied("one.cif", PACKED)
        address = rng.choice(attacks.ADDRESSES)
        line = rng.choice(
            [
                *([part.format(address, out="out") for part in reader] for reader in READERS),
                ["sample", "--elements", "Cu", "--sg", "225", "--n", "1", "--out", address],
                self.search(address),
                [*self.search("s.db"), "--reference", address],
                ["evaluate", address, "--reference", PACKED],
                ["evaluate", "one.cif", "--reference", address],
                ["hull", address, "--potential", POTENTIAL],
                ["phonons", address, "--potential", POTENTIAL],
                ["train", "--data", address, "--steps", "1", "--out", "run"],
                ["hull", "one.cif", "--key", attacks.SECRET],
                ["bench", "--model", address],
                ["sample", "--model", address, "--elements", "Cu", "--sg", "225"],
            ]
        )
        done = command("secret", line, folder)
        if not done.fault and leaks(folder):
            done.fault = "a password in a file"
        return self.tally.add(done)

    def random_line(self, number: int) -> Try:
        """A command with random options and values."""
        rng = self.rng("random line", number)
        folder = self.copied("one.cif", "cifs", PACKED, STORE, FOLDER)
        files = ["one.cif", "cifs", PACKED, STORE, FOLDER, "new", "new.db"]
        line = attacks.random_line(rng, files)
        done = command("random line", line, folder, seconds=6.0)
        if not done.fault and leaks(folder):
            done.fault = "a password in a file"
        done.what += f" [{number}]"
        return self.tally.add(done)

    def foreign_database(self, number: int) -> Try:
        """SQLite files of other programs, and files that are nearly empty: only read."""
        rng = self.rng("foreign database", number)
        folder = clean(self.place)
        path = folder / "places.db"
        content = rng.choice([b"", b"x", b"S", b"SQLite format 3", None, None])
        if content is None:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("CREATE TABLE moz_places (url TEXT)")
                if rng.random() < 0.5:
                    connection.execute("CREATE VIEW systems AS SELECT url AS id FROM moz_places")
        else:
            path.write_bytes(content)
        # a search may begin in an empty file
        searches = () if content == b"" else (tuple(self.search("places.db")),)
        line = rng.choice([*READERS, *searches])
        return self._read("foreign database", line, path.name, folder, f"{content!r} {number}")

    def full_disk(self, number: int) -> Try:
        """No file may grow beyond some size; then the same command completes the work."""
        rng = self.rng("full disk", number)
        size = rng.choice([0, 10, 100, 1000, 5000, 20_000, 50_000, 100_000])
        store = rng.random() < 0.3
        folder = self.copied("cifs") if not store else clean(self.place)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        lines: list[list[str]] = [
            self.sample("sampled"),
            ["data", "prepare", "cifs", "--out", "x.lxd", "--workers", "1"],
            ["report", "cifs", "--out", "r.html"],
            ["export", "xyz", "cifs", "--out", "x.xyz"],
            ["export", "qe", "cifs", "--out", "qe"],
        ]
        line = self.search("s.db") if store else rng.choice(lines)
        done = command("full disk", line, folder, before=limit)
        done.what += f" [{size} bytes, {number}]"
        if not done.fault and done.code == 2:
            done.fault = "a full disk is no bad input"
        if (
            not done.fault
            and done.code
            and "cannot be" not in done.err
            and "space" not in done.err
        ):
            done.fault = "" if "File too large" in done.err else "the disk is not named"
        if not done.fault and list(folder.rglob("*.part")):
            done.fault = "temporary files are left"
        if not done.fault:
            again = command("full disk", line, folder, codes=(0,))
            if again.fault or (store and rows_of(folder / "s.db") != self.rows):
                done.fault, done.err = f"not completed: {again.fault}", again.err
        return self.tally.add(done)

    def read_only(self, number: int) -> Try:
        """A folder that may only be read: reading works, writing is refused."""
        rng = self.rng("read only", number)
        folder = self.copied(STORE, FOLDER, "cifs", PACKED)

        lines: list[list[str]] = [
            self.sample("new"), self.sample(FOLDER, 9), self.search(STORE), self.search("n.db"),
            ["report", STORE, "--out", "r.html"], ["data", "info", PACKED],
            ["export", "xyz", STORE, "--out", "x.xyz"], ["export", "cif", STORE, "--out", "x"],
            ["data", "prepare", "cifs", "--out", "x.lxd", "--workers", "1"],
            ["relax", "cifs", "--out", "x", "--potential", POTENTIAL, "--workers", "1"],
        ]  # fmt: skip
        line = rng.choice(lines)
        before = digests(folder)
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        os.environ["LANGEVIN_XTAL_CACHE"] = str(folder / "no-cache")
        try:
            done = command("read only", line, folder, before=attacks.obey_permissions)
        finally:
            os.environ["LANGEVIN_XTAL_CACHE"] = str(self.root / "home-cache")
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
        done.what += f" [{number}]"
        if not done.fault and digests(folder) != before:
            done.fault = "wrote where it may not"
        if not done.fault and (done.code == 0) != (line[:2] == ["data", "info"]):
            done.fault = f"code {done.code}"
        return self.tally.add(done)

    def ended_early(self, number: int, which: signal.Signals) -> str:
        """A signal at a random moment, often several times; then the work is completed."""
        kind = f"ended by {which.name}"
        rng = self.rng(kind, number)
        what = rng.choice(["sample", "search"])
        folder = clean(self.place)
        line = self.sample(FOLDER) if what == "sample" else self.search(STORE)
        fault = ""
        for _ in range(rng.randint(1, 3)):
            child = attacks.start(line, folder)
            found = child.ended(rng.uniform(0.0, 1.1) * self.times[what])
            if found is None:
                child.signal(which)
                found = child.ended(attacks.STOP_SECONDS)
            if found is None:
                child.signal(signal.SIGKILL)
                child.ended(60)
                fault = "hang"
                break
            _, printed = child.printed()
            expected = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[which]
            if found[0] not in (0, expected) or "Traceback" in printed:
                fault = f"code {found[0]}: {printed[-300:]}"
        done = command(kind, line, folder, codes=(0,))
        fault = fault or done.fault
        if not fault and what == "search" and rows_of(folder / STORE) != self.rows:
            fault = "other rows"
        if not fault and what == "sample":
            made = {f"{FOLDER}/{k}": v for k, v in digests(folder / FOLDER).items()}
            if made != {k: v for k, v in self.whole.items() if k.startswith(f"{FOLDER}/")}:
                fault = "other files"
        self.tally.note(kind, fault and f"{fault} [{what} {number}]")
        return fault

    def together(self, number: int) -> str:
        """Two or three processes with one folder or store, one of them killed at times."""
        rng = self.rng("several processes", number)
        folder, fault = clean(self.place), ""
        what = rng.choice(["sample", "search"])
        line = self.sample(FOLDER) if what == "sample" else self.search(STORE)
        children = []
        for _ in range(rng.randint(2, 3)):
            children.append(attacks.start(line, folder))
            time.sleep(rng.uniform(0, 0.3))
        if rng.random() < 0.4:
            time.sleep(rng.uniform(0, 1.0) * self.times[what])
            children[0].signal(signal.SIGKILL)
        for child in children:
            found = child.ended(120)
            if found is None:
                child.signal(signal.SIGKILL)
                child.ended(60)
                fault = "hang"
                continue
            _, printed = child.printed()
            if found[0] not in (0, -9) or "Traceback" in printed:
                fault = f"code {found[0]}: {printed[-300:]}"
        done = command("several processes", line, folder, codes=(0,))
        fault = fault or done.fault
        if not fault and what == "search" and rows_of(folder / STORE) != self.rows:
            fault = "other rows"
        if not fault and what == "sample":
            made = {f"{FOLDER}/{k}": v for k, v in digests(folder / FOLDER).items()}
            if made != {k: v for k, v in self.whole.items() if k.startswith(f"{FOLDER}/")}:
                fault = "other files"
        self.tally.note("several processes", fault and f"{fault} [{what} {number}]")
        return fault

    def postgres(self, number: int) -> str:
        """A search in PostgreSQL: killed, by two at once, or the server ends; then completed."""
        assert self.server is not None
        rng = self.rng("PostgreSQL", number)
        what = rng.choice(["killed", "two processes", "server lost"])
        folder, fault = clean(self.place), ""
        address = self.server.database("arena")
        line = self.search(address)
        children = [attacks.start(line, folder) for _ in range(1 + (what == "two processes"))]
        until = rng.uniform(0.0, 1.1) * self.times["search"]
        found = children[0].ended(until) if what != "two processes" else None
        if found is None and what == "server lost":
            self.server.stop()
            self.server.start()
        elif found is None and what == "killed":
            children[0].signal(rng.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
        for child in children:
            found = child.ended(120)
            if found is None:
                child.signal(signal.SIGKILL)
                child.ended(60)
                fault = "hang"
                continue
            _, printed = child.printed()
            codes = {"killed": (0, -9, 130, 143), "two processes": (0,), "server lost": (0, 1, 2)}
            if found[0] not in codes[what] or "Traceback" in printed:
                fault = f"code {found[0]}: {printed[-300:]}"
        done = command("PostgreSQL", line, folder, codes=(0,))
        fault = fault or done.fault
        if not fault and rows_of(address) != self.rows:
            fault = "other rows"
        self.tally.note("PostgreSQL", fault and f"{fault} [{what} {number}]")
        return fault

    def with_workers(self, number: int, which: signal.Signals) -> str:
        """A signal while worker processes are alive: all are gone in two seconds."""
        kind = f"{which.name} with workers alive"
        rng = self.rng(kind, number)
        folder = self.copied("cifs")
        for k in range(40):
            shutil.copy(folder / "cifs" / "0.cif", folder / "cifs" / f"a{k}.cif")
        line = ["data", "prepare", "cifs", "--out", "x.lxd", "--workers", "2"]
        if rng.random() < 0.5:
            line = ["relax", "cifs", "--out", "r", "--potential", EMT, "--workers", "3",
                    "--fmax", "0.0001", "--steps", "100000"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "langevin_xtal", *line],
            cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + 60
        while process.poll() is None and len(session(process.pid)) < 3:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 3.0))
        alive = session(process.pid)
        whole = rng.random() < 0.5 and which != signal.SIGKILL
        began = time.monotonic()
        with suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(process.pid, which)
        fault = ""
        try:
            _, reported = process.communicate(timeout=attacks.STOP_SECONDS)
        except subprocess.TimeoutExpired:
            fault, reported = "hang", ""
        took = time.monotonic() - began
        while session(process.pid) and time.monotonic() < began + attacks.STOP_SECONDS:
            time.sleep(0.05)
        left = session(process.pid)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        expected = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[which]
        if not fault and left:
            fault = f"{len(left)} of {len(alive)} processes are left"
        if not fault and process.returncode not in (0, expected):
            fault = f"code {process.returncode}: {reported[-300:]}"
        if not fault and "Traceback" in reported:
            fault = f"traceback: {reported[-300:]}"
        self.tally.note(kind, fault and f"{fault} [{number}, {took:.1f} s]")
        return fault

    def kinds(self) -> dict[str, Callable[[int], Any]]:
        """Attacks that take a fraction of a second to some seconds each."""
        there = {} if self.server is None else {"PostgreSQL": self.postgres}
        return there | {
            "mutated file": self.mutated_file,
            "edited store": self.edited_store,
            "edited checkpoint": self.edited_checkpoint,
            "edited cache": self.edited_cache,
            "edited folder": self.edited_folder,
            "hostile name": self.hostile_name,
            "secret": self.secret,
            "foreign database": self.foreign_database,
            "random line": self.random_line,
            "full disk": self.full_disk,
            "read only": self.read_only,
            "SIGKILL": lambda number: self.ended_early(number, signal.SIGKILL),
            "SIGINT": lambda number: self.ended_early(number, signal.SIGINT),
            "SIGTERM": lambda number: self.ended_early(number, signal.SIGTERM),
            "several processes": self.together,
        }


def rows_of(store: Path | str) -> list[str]:
    """All that a search found, to the last bit; its failure where it cannot be read."""
    try:
        return [json.dumps(to_json(row)) for row in read_rows(store)]
    except LangevinXtalError as error:
        return [str(error)]


def formulas(table: Path) -> str:
    """What a spreadsheet would run in a CSV file, or what steers a terminal."""
    with table.open(newline="", encoding="utf-8") as stream:
        for row in csv.reader(stream):
            for cell in row:
                if re.match(r"[=+@＝＋＠\t\r]|-[^0-9.]", cell) and len(cell) > 1:
                    return f"a cell that is run: {cell[:40]!r}"
                if not all(c.isprintable() for c in cell):
                    return f"control characters in a cell: {cell[:40]!r}"
    return ""


def session(leader: int) -> list[int]:
    """Living processes of the session of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(state[3]) == leader and state[0] not in ("Z", "X"):
                found.append(int(folder.name))
    return found


def environment() -> dict[str, str]:
    """For a process of its own: this code, one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
