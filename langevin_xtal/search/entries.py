"""Entries from wherever candidates are kept: a campaign's store, a sampled folder, any files."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from langevin_xtal.crystal.entry import Entry, Value
from langevin_xtal.crystal.properties import window_energy
from langevin_xtal.crystal.pymatgen import plain_formula
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.readers import (
    ReadStructure,
    Record,
    cell_of,
    first_line,
    read,
    read_records,
)
from langevin_xtal.errors import DataError, InputError, RejectError
from langevin_xtal.search.rows import EQUALS
from langevin_xtal.search.store import Row, is_store, plain_address, read_lowest, read_rows
from langevin_xtal.symmetry import wrap
from langevin_xtal.symmetry.detection import group_number

TABLE = "candidates.csv"
"""Of a folder written by ``langevin-xtal sample``."""
ABOVE_HULL = ("e_above_hull", "energy_above_hull")
ENERGY = ("energy_per_atom",)
"""Names of energies [eV/atom] in files."""
NO_PROPERTIES = frozenset(
    {
        *("found_group", "energy", "e_above_hull", "potential"),
        *("filtered", "ranked", *EQUALS, "converged_kept"),
        *("ended_early", "energy_ended", "energy_least"),
    }
)
"""Facts of a stored candidate that are no properties: shown elsewhere, or true of all entries."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def read_entries(
    source: str | os.PathLike[str],
    *,
    top: int | None = None,
    rejects: dict[str, str] | None = None,
    notes: dict[str, tuple[str, ...]] | None = None,
    passed_over: dict[str, str] | None = None,
    file_format: str = "",
) -> list[Entry]:
    """Candidates of a source, best first.

    They are ranked by energy above hull (see :func:`rank_key`), then by energy per atom, where
    these are known; others follow in the order of the source. Of a store, candidates that were
    rejected, or equal an earlier one, are left out.

    Parameters
    ----------
    source
        The store of a search (an SQLite file or a ``postgresql://`` address), a folder written by
        ``langevin-xtal sample``, a packed dataset (``.lxd``), or anything of
        :func:`~langevin_xtal.dataset.readers.read_records`. Cells of files are taken as they
        stand; sites of packed datasets are expanded to the conventional cell.
    top
        Return at most so many.
    rejects
        Receives the reason of every structure that could not be read, by its identifier.
    notes
        Receives what was assumed or left out of a structure, by its identifier.
    passed_over
        Receives the files of a folder that hold no structures, with the reason.
    file_format
        See :func:`read_structures`.

    Raises
    ------
    InputError
        When ``top`` is below 1, or the format is not known.
    DataError
        When the source is missing, unreadable, or holds no structure that can be used.
    """
    if top is not None and top < 1:
        raise InputError(f"the best {top} were asked for; the least is 1")
    refused: dict[str, str] = {}
    if is_store(source):
        entries = _of_store(source, top)
    else:
        found: dict[str, tuple[str, ...]] = {} if notes is None else notes
        others: dict[str, str] = {} if passed_over is None else passed_over
        entries = list(
            with_distinct_ids(_of_files(Path(source), refused, found, others, file_format))
        )
        if not entries:
            name, reason = next(iter(refused.items()), ("", "it is empty"))
            where = f"{name}: " if name else ""
            raise DataError(f"{source} holds no structure that can be used ({where}{reason})")
    if rejects is not None:
        rejects.update(refused)
    return sorted(entries, key=rank_key)[:top]


@dataclass(frozen=True)
class Structures(Sequence[ReadStructure]):
    """Structures that were read, in order, and everything that was not."""

    found: tuple[ReadStructure, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a structure cannot be used, by its identifier."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Files of a folder that hold no structures, with the reason."""

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, k: int) -> ReadStructure: ...

    @overload
    def __getitem__(self, k: slice) -> tuple[ReadStructure, ...]: ...

    def __getitem__(self, k: int | slice) -> ReadStructure | tuple[ReadStructure, ...]:
        return self.found[k]

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """What was assumed, changed or left out of structures, by their identifiers."""
        return {one.id: one.notes for one in self.found if one.notes}

    def __repr__(self) -> str:
        return f"Structures({len(self)} read, {len(self.left_out)} left out)"


def read_structures(*sources: str | os.PathLike[str], file_format: str = "") -> Structures:
    """Read structures of any file format, folders, packed data, and stores of a search.

    Cells are as they stand in the file. What came along is kept where the format has it:
    energies, magnetic moments, fixed atoms, oxidation states, further numbers.

    Parameters
    ----------
    file_format
        Where neither the name nor the content of a file tells: ``cif``, ``poscar``, ``extxyz``,
        ``csv``, ``json``, ``npz``, or the name that ASE has for it (``espresso-out``). In folders
        it is that of the files which tell nothing.

    Raises
    ------
    InputError
        For a format that is not known.
    DataError
        When a source is missing, unreadable, or of no known format.
    """
    found: list[ReadStructure] = []
    left_out: dict[str, str] = {}
    passed_over: dict[str, str] = {}
    for source in sources:
        if is_store(source):
            found += [_of_row(entry) for entry in _of_store(source)]
            continue
        records = read_records(source, file_format)
        for record in records:
            try:
                found.append(read(record))
            except RejectError as reject:
                left_out[record.id] = str(reject)
            except Exception as error:  # one strange structure must not end the run
                left_out[record.id] = f"unexpected failure: {first_line(error)}"
        passed_over |= records.passed_over
    return Structures(tuple(found), left_out, passed_over)


def _of_row(entry: Entry) -> ReadStructure:
    numbers = {k: float(v) for k, v in entry.properties.items() if isinstance(v, (int, float))}
    energy = None if entry.energy is None else entry.energy * len(entry.cell[2])
    return ReadStructure(id=entry.uid, cell=entry.cell, energy=energy, properties=numbers)


def rank_key(entry: Entry) -> tuple[float, float, float, float]:
    """Smaller is better; what is unknown comes last.

    Energy above the hull of references and candidates, where a search has found it; then above
    that of the references alone; then energy [eV/atom]. With the target of a search, each is
    higher by the :func:`~langevin_xtal.crystal.properties.window_energy` of the candidate, which
    alone orders those without an energy.
    """
    probability = entry.properties.get("target_probability")
    more = 0.0 if probability is None else window_energy(float(probability))
    values = (entry.properties.get("e_above_all"), entry.e_above_hull, entry.energy)
    first, second, third = (math.inf if v is None else float(v) + more for v in values)
    return first, second, third, more


def entry_of(row: Row) -> Entry:
    """A candidate of a store as exports and reports see it.

    Raises
    ------
    ValueError
        For a row without a geometry.
    """
    cell, facts = row.cell, row.facts
    if cell is None:
        raise ValueError(f"candidate {row.uid} has no geometry")
    group = facts.get("found_group")
    return Entry(
        uid=row.uid,
        cell=cell,
        formula=plain_formula(cell[2]),
        space_group=row.group,
        found_group=int(group) if group else None,
        energy=_number(facts.get("energy")),
        e_above_hull=_number(facts.get("e_above_hull")),
        potential=str(facts.get("potential", "")),
        sampled=None if cell is row.sampled else row.sampled,
        properties={
            "state": row.state,
            **{name: value for name, value in facts.items() if name not in NO_PROPERTIES},
        },
        provenance={"request": row.request, **row.provenance},
    )


def _number(value: Value | None) -> float | None:
    return None if value is None else float(value)


def _of_store(source: str | os.PathLike[str], top: int | None = None) -> list[Entry]:
    """Of all candidates left, or some among which the best ``top`` are."""
    rows = None if top is None else read_lowest(source, top)
    if rows is None:
        rows = read_rows(source)
    left = [row for row in rows if row.state not in ("rejected", "duplicate")]
    entries = [entry_of(row) for row in left if row.cell is not None]
    if not entries:
        raise DataError(
            f"store {plain_address(source)} has no candidate left: all of its {len(rows)} were "
            "rejected, or there are none yet"
        )
    return entries


# -- files


def _of_files(
    path: Path,
    refused: dict[str, str],
    notes: dict[str, tuple[str, ...]],
    passed_over: dict[str, str],
    file_format: str,
) -> Iterator[Entry]:
    if path.is_dir() and (path / TABLE).is_file():
        yield from _of_sampled(path, refused)
    elif path.suffix == ".lxd":
        data = PackedDataset.load(path)
        yield from (_of_packed(data, k) for k in range(len(data)))
    else:
        records = read_records(path, file_format)
        yield from _of_records(records, {"source": str(path)}, refused, notes)
        passed_over.update(records.passed_over)


def _of_records(
    records: Iterable[Record],
    provenance: Mapping[str, Value],
    refused: dict[str, str],
    notes: dict[str, tuple[str, ...]],
) -> Iterator[Entry]:
    for record in records:
        try:
            found = read(record)
            group = group_number(found.cell) or None
        except RejectError as reject:
            refused[record.id] = str(reject)
        except Exception as error:  # one strange structure must not end the run
            refused[record.id] = f"unexpected failure: {first_line(error)}"
        else:
            if found.notes:
                notes[record.id] = found.notes
            yield _entry(found, group, provenance)


def _entry(found: ReadStructure, group: int | None, provenance: Mapping[str, Value]) -> Entry:
    known = {key: value for key, value in found.properties.items() if math.isfinite(value)}
    energy = next((known[key] for key in ENERGY if key in known), None)
    if energy is None and found.energy is not None:
        energy = found.energy / len(found.cell[2])
    lattice, frac, numbers = found.cell
    return Entry(
        uid=_UNSAFE.sub("_", found.id).strip("._") or "structure",
        cell=(lattice, wrap(frac), numbers),
        formula=plain_formula(numbers),
        space_group=group or 1,
        found_group=group,
        energy=energy,
        e_above_hull=next((known[key] for key in ABOVE_HULL if key in known), None),
        properties=known,
        provenance={**provenance, "id": found.id},
        moments=found.moments,
        fixed=found.fixed,
        oxidation=found.oxidation,
    )


def with_distinct_ids(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, later ones of equal identifier renamed ``x-2``, ``x-3``, …"""
    used: set[str] = set()
    for entry in entries:
        uid, count = entry.uid, 1
        while uid.lower() in used:  # some file systems take no notice of case
            count += 1
            uid = f"{entry.uid}-{count}"
        used.add(uid.lower())
        if uid != entry.uid:
            entry = Entry(**{**vars(entry), "uid": uid})
        yield entry


def _of_packed(data: PackedDataset, k: int) -> Entry:
    unit = data.unit(k)
    properties = {name: float(values[k]) for name, values in data.properties.items()}
    made = ReadStructure(id=str(data.id[k]), cell=unit.cell(), properties=properties)
    return _entry(made, unit.group, {})


# -- a folder of samples


def _of_sampled(folder: Path, refused: dict[str, str]) -> Iterator[Entry]:
    run = _run(folder)
    for row in _rows(folder / TABLE):
        name = str(row.get("file", ""))
        file = folder / Path(name).name
        try:
            cell = cell_of(next(iter(read_records(file))))
            cell = (cell[0], wrap(cell[1]), cell[2])
            index, group = int(row["index"]), int(row["group"])
            attempt = int(row["attempt"]) if row.get("attempt") else 0
            if not 1 <= group <= 230:
                raise ValueError(f"group {group} does not exist")
        except RejectError as reject:
            refused[name] = str(reject)
        except Exception as error:  # one damaged file must not end the run
            refused[name] = f"cannot be read: {first_line(error)}"
        else:
            yield Entry(
                uid=f"{index:06d}",
                cell=cell,
                formula=plain_formula(cell[2]),
                space_group=group,
                found_group=group_number(cell) or None,
                properties={"symmetry": row.get("symmetry", "")},
                provenance={
                    **run,
                    "request": row.get("request", ""),
                    "index": index,
                    "attempt": attempt,
                },
            )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [row for row in csv.DictReader(stream) if row.get("file")]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)})") from None


def _run(folder: Path) -> dict[str, Value]:
    """What ``run.json`` says of seed, model, weights and sampler; nothing when it is not there."""
    try:
        settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(settings, dict):
        return {}
    names = ("seed", "model", "weights", "sampler", "positions", "assignment_temperature")
    return {name: settings[name] for name in names if isinstance(settings.get(name), Value)}
