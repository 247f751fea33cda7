"""Structure files: CIF with symmetry, one per candidate, and one extended XYZ."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from langevin_xtal.config.export import CellChoice, CifConfig, XyzConfig
from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.ase import to_atoms
from langevin_xtal.crystal.asymmetric import asymmetric_unit, declared_sites
from langevin_xtal.crystal.cif import sites_cif
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.errors import InputError, LangevinXtalError, RejectError
from langevin_xtal.export.cells import (
    Carried,
    ase_constraints,
    carried_cell,
    carried_notes,
    entry_name,
)
from langevin_xtal.export.folders import MANIFEST, Progress, make_root
from langevin_xtal.export.manifest import (
    ExportWarning,
    Manifest,
    entry_row,
    structure_sha,
    table_text,
)
from langevin_xtal.export.notes import Notes
from langevin_xtal.files import FULL, check_target, unwritable, write_text
from langevin_xtal.structures.record import collinear, is_collinear

if TYPE_CHECKING:
    from ase import Atoms

_ORIGINS = {"found": "the group found by spglib", "P1": "P1"}


def export_cif(
    entries: Sequence[Entry],
    out: str | os.PathLike[str],
    *,
    symprec: float = CifConfig.symprec,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """One CIF per candidate with its asymmetric unit and operations, and a manifest.

    The group that was asked for is kept wherever the stored cell has it within ``symprec``;
    otherwise the group spglib finds is written in its conventional cell, or P1 without one. The
    column ``symmetry`` of the manifest says which: ``declared``, ``found`` or ``P1``.

    Parameters
    ----------
    entries
        By rank, the best first.
    out
        Folder, made when missing.
    symprec
        Tolerance of the symmetry [Å].
    force
        Replace files that hold something else.
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        Without entries, when ``out`` cannot be written, or when a file there holds something else
        and ``force`` is not given.
    LangevinXtalError
        When the disk is full.
    """
    _check(entries)
    CifConfig(symprec=symprec)
    root = Path(out)
    make_root(root, "cif", force=force)
    notes = Notes()
    texts: dict[str, str] = {}
    rows: dict[str, dict[str, str]] = {}
    failures: dict[str, str] = {}
    for rank, entry in enumerate(entries, start=1):
        if progress is not None:
            progress(rank - 1, len(entries))
        name = f"{entry_name(rank, entry)}.cif"
        try:
            text, origin = entry_cif(entry, rank, symprec)
        except LangevinXtalError as error:
            failures[entry.uid] = str(error)
            continue
        if origin != "declared":
            notes.add(name, f"the cell lacks the group asked for; {_ORIGINS[origin]} is written")
        _check_place(root / name, text, force)
        texts[name] = text
        columns = {"folder": name, "export": "cif", "symmetry": origin}
        rows[name] = entry_row(entry, columns | {"atoms": str(len(entry.cell[2]))})
    if not texts:
        raise LangevinXtalError(f"none of the candidates could be exported: {failures}")
    done: list[bool] = []
    try:
        for name, text in texts.items():
            done.append(_write(root / name, text))
        write_text(root / MANIFEST, table_text(rows.values()))
    except OSError as error:
        raise _unfinished(root, error, len(done), len(entries)) from None
    if progress is not None:
        progress(len(entries), len(entries))
    return _manifest(root / MANIFEST, list(rows.values()), sum(done), notes, failures)


def export_xyz(
    entries: Sequence[Entry],
    out: str | os.PathLike[str],
    *,
    cell: CellChoice = XyzConfig.cell,
    symprec: float = XyzConfig.symprec,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """All candidates in one extended XYZ file; energies and provenance in ``info``.

    Magnetic moments are the column ``initial_magmoms``, fixed atoms ``move_mask``.

    Parameters
    ----------
    entries
        By rank, the best first.
    out
        The file, such as ``best.xyz``.
    cell, symprec
        See :func:`langevin_xtal.export.cells.export_cell`.
    force
        Replace a file that holds something else.
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        Without entries, when the file cannot be written, or when it holds something else and
        ``force`` is not given.
    LangevinXtalError
        When the disk is full.
    """
    _check(entries)
    XyzConfig(cell=cell, symprec=symprec)
    from ase.io import write

    path = Path(out)
    if not path.is_dir():
        check_target(path)
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise InputError(f"{path} {problem}; give a file such as best.xyz")
    frames, rows, notes = [], [], Notes()
    for rank, entry in enumerate(entries, start=1):
        chosen = carried_cell(entry, cell, symprec)
        atoms, said = _atoms(chosen, entry, rank)
        for note in (*carried_notes(entry, cell, vectors=True), *said):
            notes.add(entry_name(rank, entry), note)
        frames.append(atoms)
        columns = {"folder": path.name, "export": "xyz", "atoms": str(len(atoms))}
        rows.append(entry_row(entry, columns))
        if progress is not None:
            progress(rank, len(entries))
    buffer = io.StringIO()
    write(buffer, frames, format="extxyz")
    _check_place(path, buffer.getvalue(), force)
    try:
        written = _write(path, buffer.getvalue())
    except OSError as error:
        if error.errno in FULL:
            raise _unfinished(path, error, 0, len(entries)) from None
        raise unwritable(path, error, InputError) from None
    return _manifest(path, rows, len(rows) * written, notes)


def entry_cif(entry: Entry, rank: int, symprec: float = USUAL) -> tuple[str, str]:
    """The CIF of an entry, and whose symmetry it has: ``declared``, ``found`` or ``P1``."""
    origin = "declared"
    sites = declared_sites(entry.cell, entry.space_group, symprec)
    if sites is None:
        origin = "found"
        with suppress(RejectError):
            sites = asymmetric_unit(*entry.cell, symprec=symprec)
    if sites is None or (origin == "found" and sites.group == 1):
        origin = "P1"
        sites = declared_sites(entry.cell, 1, symprec)
    if sites is None:
        raise InputError(f"candidate {entry.uid} has a cell that no CIF can hold")
    facts = "".join(f"# {name}: {_plain_line(value)}\n" for name, value in _facts(entry))
    return facts + sites_cif(sites, f"{rank:04d}_{sites.group}"), origin


def _plain_line(value: object) -> str:
    """A comment of a CIF: ASCII, one line of at most 2048 characters with its name."""
    text = " ".join(str(value).split())
    return text.encode("ascii", "backslashreplace").decode()[:1500]


def _check(entries: Sequence[Entry]) -> None:
    if not entries:
        raise InputError("there is no candidate to export; check the source and its filters")


def _is_same(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _check_place(path: Path, text: str, force: bool) -> None:
    """Refuse a place that holds something else."""
    if not path.is_dir():
        check_target(path)  # reading a pipe or a device would not end
    if not os.path.lexists(path) or (force and not path.is_dir()) or _is_same(path, text):
        return
    remedy = "" if path.is_dir() else ", or --force (force=True) to replace it"
    raise InputError(
        f"{path} is there already and holds something else; give another place{remedy}"
    )


def _write(path: Path, text: str) -> bool:
    """Write a file unless it is there; whether it was written."""
    if _is_same(path, text):
        return False
    write_text(path, text)
    return True


def _manifest(
    path: Path,
    rows: list[dict[str, str]],
    written: int,
    notes: Notes,
    failures: dict[str, str] | None = None,
) -> Manifest:
    sentences = notes.sentences(len(rows))
    for sentence in sentences:
        warnings.warn(sentence, ExportWarning, stacklevel=3)
    return Manifest(path, tuple(rows), written, len(rows) - written, failures or {}, sentences)


def _unfinished(path: Path, error: OSError, done: int, planned: int) -> LangevinXtalError:
    return LangevinXtalError(
        f"{error.filename or path} cannot be written ({error.strerror or error}); "
        f"{done} of {planned} candidates are complete, and the same command continues"
    )


def _facts(entry: Entry) -> Iterator[tuple[str, object]]:
    """What is known of an entry, by name."""
    yield "uid", entry.uid
    yield "formula", entry.formula
    yield "space_group", entry.space_group
    for name in ("found_group", "e_above_hull", "energy", "potential"):
        value = getattr(entry, name)
        if value not in (None, ""):
            yield {"energy": "energy_per_atom"}.get(name, name), value
    for prefix, values in (("", entry.properties), ("provenance_", entry.provenance)):
        for name, value in sorted(values.items()):
            if value is not None and value != "":
                yield re.sub(r"\W", "_", f"{prefix}{name}", flags=re.ASCII), value


def _atoms(chosen: Carried, entry: Entry, rank: int) -> tuple[Atoms, list[str]]:
    """ase.Atoms, and what could not be carried along."""
    info: dict[str, object] = {"name": entry_name(rank, entry), "rank": rank}
    for name, value in _facts(entry):
        plain = value.item() if isinstance(value, np.generic) else value
        info.setdefault(name, " ".join(plain.split()) if isinstance(plain, str) else plain)
    info["structure_sha"] = structure_sha(entry)
    atoms = to_atoms(chosen.cell, info)
    if chosen.moments is not None:
        flat = is_collinear(chosen.moments)
        atoms.set_initial_magnetic_moments(collinear(chosen.moments) if flat else chosen.moments)
    if chosen.fixed is None:
        return atoms, []
    held, note = ase_constraints(chosen.fixed, chosen.cell[0])
    atoms.set_constraint(held)
    return atoms, [note] * bool(note)
