"""Results of DFT, from the folders of an export back into the store of the search.

A folder is matched by its ``export.json``: which candidate it is of, and the SHA-256 of the
geometry that was exported. What does not fit is listed with the reason, and the store stays as it
was. Collecting again changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.pymatgen import plain_formula, to_structure
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.export.folders import RECORD, Progress
from langevin_xtal.export.results import DftResult, find_result, incar_differences, read_result
from langevin_xtal.screen.corrections import mp2020_correction
from langevin_xtal.screen.hull import OWN, HullReferences
from langevin_xtal.screen.potentials import CORRECTED
from langevin_xtal.search.rows import Change, Row
from langevin_xtal.search.store import reopened

COMPATIBLE_SETS = ("MPRelaxSet", "MPStaticSet")
"""Input sets whose energies, corrected, belong with the Materials Project's."""
LENGTHS, SITES, ANGLES = 0.02, 0.05, 1.0
"""A run began at the exported geometry when StructureMatcher says so within these."""


@dataclass(frozen=True)
class Collected:
    """What became of the folders."""

    stored: tuple[str, ...] = ()  #: candidates whose results are new
    known: tuple[str, ...] = ()  #: candidates whose results were there already
    refused: Mapping[str, str] = field(default_factory=dict)  #: folder to reason
    notes: Mapping[str, str] = field(default_factory=dict)  #: folder to what to know of it


def collect(
    root: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    continued: bool = False,
    references: HullReferences | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Read finished calculations below a folder, and keep them in the store.

    Parameters
    ----------
    root
        Folder of an export, or above several of them.
    store
        Of the search that was exported.
    continued
        Take runs that began at another geometry of the same composition: continued ones.
    references
        DFT energies, for the energy above hull by DFT: of the Materials Project
        (:meth:`~langevin_xtal.screen.hull.HullReferences.from_materials_project`), or the
        user's own (:func:`~langevin_xtal.screen.own_energies.own_references`).
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        When there is no exported folder below ``root``, or the references are a potential's.
    DataError
        When the store cannot be used.
    """
    if references is not None and not references.potential.startswith(("DFT", OWN)):
        raise InputError(
            f"the hull references are of the potential {references.potential!r}: energies by DFT "
            "must not be compared with them; give your own energies as CSV, or --key"
        )
    folders = sorted(_exported(Path(root)))
    if not folders:
        raise InputError(
            f"{root} holds no folder that langevin-xtal export wrote (there is no {RECORD}): give "
            "the folder of an export to VASP or Quantum ESPRESSO"
        )
    refused: dict[str, str] = {}
    notes: dict[str, str] = {}
    stored, known = [], []
    with reopened(store) as opened:
        rows = {row.uid: row for row in opened.rows()}
        for done, folder in enumerate(folders):
            name = os.path.relpath(folder, root)
            try:
                row, result, set_name, remarks = _matched(folder, rows, continued)
            except DataError as error:
                refused[name] = str(error)
            else:
                above, reason = _above_hull(result, set_name, references)
                note = "; ".join([*remarks, *([reason] if reason else [])])
                if note:
                    notes[name] = note
                change = _change(result, set_name, note)
                if above is not None:
                    change = Change({**change.facts, "dft_e_above_hull": above}, dft=change.dft)
                if _there(row, change):
                    known.append(row.uid)
                else:
                    opened.note({row.index: change})
                    rows[row.uid] = row.changed(change)
                    stored.append(row.uid)
            if progress is not None:
                progress(done + 1, len(folders))
    return Collected(tuple(stored), tuple(known), refused, notes)


def _exported(root: Path) -> Iterator[Path]:
    """Folders with a record, but not those an export has moved away."""
    if not root.is_dir():
        raise InputError(f"{root} is no folder")
    for path in root.rglob(RECORD):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path.parent


def _matched(
    folder: Path, rows: Mapping[str, Row], continued: bool
) -> tuple[Row, DftResult, str, list[str]]:
    """Candidate, result, input set and remarks of a folder.

    Raises
    ------
    DataError
        With the reason why it is not taken.
    """
    record = _record(folder)
    columns = record["row"]
    uid = columns.get("uid", "")
    row = rows.get(uid)
    if row is None:
        raise DataError(f"candidate {uid} is not in this store: it was exported from another")
    sha = columns.get("structure_sha")
    geometries = [cell for cell in (row.cell, row.kept, row.released, row.sampled) if cell]
    exported = next((cell for cell in geometries if cell_key(cell) == sha), None)
    if exported is None:
        raise DataError(
            f"candidate {uid} of this store has another geometry than was exported: it is of "
            "another search, or was relaxed on since"
        )
    if columns.get("export") == "phonopy":
        raise DataError("it is an export of displacements: phonopy itself reads those")
    path = find_result(folder)
    if path is None:
        raise DataError("there is no result yet (vasprun.xml, pw.out, or a .traj or .extxyz file)")
    result = read_result(path)
    remarks = list(result.notes)
    if _counts(result.last) != _counts(exported):
        found, wanted = plain_formula(result.last[2]), plain_formula(exported[2])
        raise DataError(f"{path.name} is of {found}, but {wanted} was exported")
    if not _same_crystal(result.first, exported):
        if not continued:
            raise DataError(
                f"{path.name} began at another structure than was exported (a run continued from "
                "its own end is taken with --continued)"
            )
        remarks.append("the run began at another structure than was exported")
    incar = folder / "INCAR"
    if result.settings and incar.is_file():
        differing = incar_differences(result.settings, incar.read_text(encoding="utf-8"))
        if differing:
            remarks.append(f"INCAR differs from what was exported: {', '.join(differing)}")
    return row, result, str(columns.get("input_set", "")), remarks


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record["row"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{RECORD} is damaged: which candidate it is of is not known") from None
    return dict(record)


def _counts(cell: Cell) -> dict[int, float]:
    """Share of each element's atoms."""
    numbers = cell[2].tolist()
    return {z: round(numbers.count(z) / len(numbers), 9) for z in set(numbers)}


def _same_crystal(one: Cell, other: Cell) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=LENGTHS, stol=SITES, angle_tol=ANGLES, scale=False)
    return bool(matcher.fit(to_structure(one), to_structure(other)))


def _change(result: DftResult, set_name: str, note: str) -> Change:
    facts: dict[str, Value | None] = {
        "dft_energy": result.energy,
        "dft_gap": result.gap,
        "dft_magnetisation": result.magnetisation,
        "dft_code": result.code,
        "dft_set": set_name or None,
        "dft_note": note or None,
    }
    return Change(facts, dft=result.last)


def _above_hull(
    result: DftResult, set_name: str, references: HullReferences | None
) -> tuple[float | None, str]:
    """Energy above hull by DFT [eV/atom], None with the reason why it is not known."""
    if references is None:
        return None, ""
    energy = result.energy
    if references.energies == CORRECTED:
        if set_name not in COMPATIBLE_SETS:
            return None, (
                f"{set_name or 'its settings'} are not those of the Materials Project's energies, "
                "so the energy above its hull is not known"
            )
        energy += mp2020_correction(result.last)
    found = references.energy_above_hull(result.last[2], energy)
    return found.e_above_hull, found.missing


def _there(row: Row, change: Change) -> bool:
    """Whether the row has all of it already."""
    facts = all(row.facts.get(name) == value for name, value in change.facts.items())
    if not facts or row.dft is None or change.dft is None:
        return False
    return cell_key(row.dft) == cell_key(change.dft)
