"""Folders of input files, one per candidate: complete or absent, never overwritten unasked.

Each folder is written under a temporary name beside its place and renamed. Its ``export.json``
says what determined its content (``key``), so that the same export finds its folders again, under
whatever rank, and refuses folders that hold anything else.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from langevin_xtal.crystal.entry import Entry
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.export.cells import entry_name
from langevin_xtal.export.jobs import Job, write_jobs
from langevin_xtal.export.manifest import (
    ExportWarning,
    Manifest,
    entry_row,
    export_key,
    read_kinds,
    table_text,
)
from langevin_xtal.export.notes import Notes
from langevin_xtal.files import clear_left, write_text
from langevin_xtal.runtime import is_running

RECORD = "export.json"
MANIFEST = "manifest.csv"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Inputs:
    """The files of one candidate, not yet written."""

    files: Mapping[str, str]
    """Path within the folder to content."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of the manifest."""
    jobs: tuple[str, ...] = (".",)
    """Subfolders in which the program is to run."""


def write_folders(
    entries: Sequence[Entry],
    out: str | os.PathLike[str],
    make: Callable[[Entry, str, Notes], Inputs],
    *,
    settings: Mapping[str, object],
    job: Job,
    force: bool = False,
    progress: Progress | None = None,
    notes: Notes | None = None,
) -> Manifest:
    """One folder per entry below ``out``, the manifest, and the job-array script.

    Parameters
    ----------
    entries
        By rank, the best first.
    make
        The inputs of an entry, given its folder's name and where warnings go. What it raises for
        one entry is recorded and spoils no other.
    settings
        What determines the files besides the entry; ``"export"`` and ``"input_set"`` of it go
        into the manifest.
    job
        How the program is started.
    force
        Replace folders that hold something else. Folders with files that the export did not write
        are kept under another name.
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        Without entries, when ``out`` cannot be written, or when a folder there holds something
        else and ``force`` is not given; nothing is written then.
    LangevinXtalError
        When the disk is full, or no entry could be written.
    """
    if not entries:
        raise InputError("there is no candidate to export; check the source and its filters")
    root = Path(out)
    make_root(root, str(settings["export"]), force=force)
    notes = Notes() if notes is None else notes
    run = _Export(root, settings, make, notes, force)
    plan = run.plan(entries)
    try:
        for done, (entry, name, key) in enumerate(plan):
            if progress is not None:
                progress(done, len(plan))
            run.export(entry, name, key)
        if progress is not None:
            progress(len(plan), len(plan))
    except OSError as error:
        run.finish(job, quietly=True)
        raise LangevinXtalError(
            f"{error.filename or root} cannot be written ({error.strerror or error}); "
            f"{len(run.rows)} of {len(plan)} candidates are complete in {root}, and the same "
            "command continues"
        ) from None
    except BaseException:
        run.finish(job, quietly=True)
        raise
    return run.finish(job)


class _Export:
    """One call of :func:`write_folders`."""

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, object],
        make: Callable[[Entry, str, Notes], Inputs],
        notes: Notes,
        force: bool,
    ) -> None:
        self.root, self.settings, self.make, self.notes = root, settings, make, notes
        self.force = force
        self.known = _known_folders(root)
        self.rows: dict[str, Mapping[str, str]] = {}  # folder to row, by rank
        self.jobs: dict[str, Sequence[str]] = {}
        self.failures: dict[str, str] = {}
        self.written = self.kept = 0

    def plan(self, entries: Sequence[Entry]) -> list[tuple[Entry, str, str]]:
        """Entry, folder name and key of each; refuses conflicts before anything is written."""
        keys = {
            export_key(e, self.settings): (r, e) for r, e in reversed([*enumerate(entries, 1)])
        }
        taken = {self.known[key] for key in keys if key in self.known}
        plan = []
        for key, (rank, entry) in sorted(keys.items(), key=lambda item: item[1][0]):
            if key in self.known:
                plan.append((entry, self.known[key], key))
                continue
            name = entry_name(rank, entry)
            while name in taken:
                name += "-2"
            taken.add(name)
            if not self.force and os.path.lexists(self.root / name):
                raise InputError(
                    f"{self.root / name} is there already and holds another structure, other "
                    "settings or files of another origin; give another folder, or --force "
                    "(force=True) to replace it"
                )
            plan.append((entry, name, key))
        return plan

    def export(self, entry: Entry, name: str, key: str) -> None:
        """Write one candidate, or note that it is there or cannot be written."""
        if key in self.known and not self.force:
            record = _read_record(self.root / name)
            if record is None:
                raise InputError(f"{self.root / name} was changed during the export; run it again")
            self._enter(entry, name, record["columns"], record["jobs"])
            self.kept += 1
            return
        try:
            with self.notes.collect(name):
                inputs = self.make(entry, name, self.notes)
        except OSError:
            raise
        except LangevinXtalError as error:
            self.failures[entry.uid] = str(error)
            return
        except Exception as error:  # one strange structure must not end the export
            first = (str(error).splitlines() or [""])[0]
            self.failures[entry.uid] = f"{type(error).__name__}: {first}"
            return
        columns = self._columns(inputs, name, key)
        record = {
            "key": key,
            "files": sorted(inputs.files),
            "jobs": list(inputs.jobs),
            "columns": columns,
            "row": entry_row(entry, columns),
        }
        text = json.dumps(record, indent=1) + "\n"
        if _holds(self.root / name, inputs.files):
            write_text(self.root / name / RECORD, text)
            self.kept += 1
        elif self._write(name, {**inputs.files, RECORD: text}, key):
            self.written += 1
        else:
            self.kept += 1
        self.known[key] = name
        self._enter(entry, name, columns, inputs.jobs)

    def finish(self, job: Job, *, quietly: bool = False) -> Manifest:
        """Manifest and job script of what is complete; ``quietly`` when a failure follows."""
        if not self.rows and not quietly:
            uid, reason = next(iter(self.failures.items()))
            raise LangevinXtalError(
                f"none of the {len(self.failures)} candidates could be exported; {uid}: {reason}"
            )
        with suppress(OSError) if quietly else nullcontext():
            write_text(self.root / MANIFEST, table_text(self._all_rows()))
            folders = [os.path.normpath(f"{n}/{j}") for n, jobs in self.jobs.items() for j in jobs]
            kept = write_jobs(self.root, folders, job, force=self.force)
            if kept:
                self.notes.add("submit.sh", kept)
        sentences = self.notes.sentences(len(self.rows) + len(self.failures))
        if not quietly:
            for sentence in sentences:
                warnings.warn(sentence, ExportWarning, stacklevel=4)
        return Manifest(
            path=self.root / MANIFEST,
            rows=tuple(self.rows.values()),
            written=self.written,
            kept=self.kept,
            failures=self.failures,
            notes=sentences,
        )

    def _write(self, name: str, files: Mapping[str, str], key: str) -> bool:
        """Write a folder; False where another process has just written the same."""
        try:
            _write_folder(self.root, name, files, replace=self.force)
        except OSError as error:
            there = _read_record(self.root / name) or {}
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and there.get("key") == key:
                return False
            raise
        return True

    def _columns(self, inputs: Inputs, name: str, key: str) -> dict[str, str]:
        return {
            "export": str(self.settings["export"]),
            "input_set": str(self.settings.get("input_set", "")),
            **inputs.columns,
            "folder": name,
            "key": key,
        }

    def _enter(
        self, entry: Entry, name: str, columns: Mapping[str, str], jobs: Sequence[str]
    ) -> None:
        self.rows[name] = entry_row(entry, columns)
        self.jobs[name] = jobs

    def _all_rows(self) -> list[Mapping[str, str]]:
        """By folder: this selection, and earlier ones whose folders are still there."""
        rows = dict(self.rows)
        for name in self.known.values():
            record = None if name in rows else _read_record(self.root / name)
            if record is not None:
                rows[name] = record["row"]
        return [rows[name] for name in sorted(rows)]


def make_root(root: Path, export: str, *, force: bool = False) -> None:
    """Make the folder of an export ready, and remove what a killed one left half-written.

    Raises
    ------
    InputError
        When it cannot be written, or holds an export of another kind and ``force`` is not given.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"folder {root} cannot be made ({error.strerror}); give a folder you may write to"
        ) from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise InputError(f"folder {root} cannot be written; give a folder you may write to")
    for left in root.glob(".*.*.part"):  # of an export that was killed
        process = left.name.split(".")[-2]
        dead = process.isdecimal() and not is_running(int(process))
        if left.is_dir() and (dead or process == str(os.getpid())):
            shutil.rmtree(left, ignore_errors=True)
    clear_left(root)
    there = read_kinds(root / MANIFEST)
    if there - {export} and not force:
        raise InputError(
            f"{root / MANIFEST} is there already and not of an export to {export}; give another "
            "folder, or --force (force=True) to replace it"
        )


def _known_folders(root: Path) -> dict[str, str]:
    """Key to name of the folders that an export wrote."""
    known = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or re.search(r"\.old\d*$", path.name):
            continue
        record = _read_record(path)
        if record is not None:
            known[record["key"]] = path.name
    return known


def _read_record(folder: Path) -> dict[str, Any] | None:
    """``export.json`` of a folder; None when there is none that makes sense."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _is_record(record: object) -> bool:
    def texts(values: Iterable[object]) -> bool:
        return all(isinstance(value, str) for value in values)

    return (
        isinstance(record, dict)
        and isinstance(record.get("key"), str)
        and all(isinstance(record.get(k), list) and texts(record[k]) for k in ("files", "jobs"))
        and all(re.fullmatch(r"\.|disp-\d+", job) for job in record["jobs"])
        and all(
            isinstance(record.get(k), dict) and texts(record[k].values())
            for k in ("columns", "row")
        )
    )


def _holds(folder: Path, files: Mapping[str, str]) -> bool:
    try:
        return all((folder / n).read_text(encoding="utf-8") == t for n, t in files.items())
    except (OSError, ValueError):
        return False


def _write_folder(root: Path, name: str, files: Mapping[str, str], *, replace: bool) -> None:
    """The folder, whole or not at all; ``replace`` what is there."""
    part = root / f".{name}.{os.getpid()}.part"
    try:
        part.mkdir()
        for path, text in files.items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_text(text, encoding="utf-8")
        if replace:
            _clear_place(root / name)
        part.rename(root / name)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _clear_place(place: Path) -> None:
    """Removes what an export wrote; moves away what also holds other files, such as results."""
    if not os.path.lexists(place):
        return
    record = None if place.is_symlink() else _read_record(place)
    mine = {RECORD, *record["files"]} if record is not None else set()
    found = {str(p.relative_to(place)) for p in place.rglob("*") if not p.is_dir()}
    if record is not None and found <= mine:
        gone = place.with_name(f".{place.name}.gone.{os.getpid()}.part")
        place.rename(gone)
        shutil.rmtree(gone)
        return
    old = place.with_name(place.name + ".old")
    for number in count(2):
        if not os.path.lexists(old):
            break
        old = place.with_name(f"{place.name}.old{number}")
    place.rename(old)
