"""Extended XYZ, frame by frame: one bad frame does not cost the others."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from langevin_xtal.crystal.ase import from_atoms
from langevin_xtal.errors import RejectError
from langevin_xtal.structures.documents import vectors
from langevin_xtal.structures.record import (
    MOST_ATOMS,
    ReadStructure,
    Record,
    first_line,
    number,
    rejected,
)

if TYPE_CHECKING:
    from ase import Atoms

_ISOTOPE = re.compile(r"^(\s*)[DT](?=\s)", re.MULTILINE)
_IDENTIFIER = re.compile(
    r"(?:^|\s)(?:material_id|id)\s*=\s*(\"[^\"]*\"|'[^']*'|\{[^}]*\}|\S+)", re.IGNORECASE
)


def looks_like_xyz(text: str) -> bool:
    """Whether text begins with a count, a comment, and a line of an atom."""
    lines = text.split("\n", 3)
    return (
        len(lines) > 2
        and bool(re.fullmatch(r"\s*\d{1,9}\s*", lines[0]))
        and bool(re.match(r"\s*(?:[A-Z][a-z]?\w*|\d{1,3})(?:\s+\S+){3}", lines[2]))
    )


def read_xyz(open_stream: Callable[[], TextIO], stem: str) -> Iterator[Record]:
    """A record for every frame; repeated identifiers get a number behind."""
    used: dict[str, int] = {}
    k, line = 0, 0
    with open_stream() as stream:
        while head := stream.readline():
            line += 1
            if not head.strip():
                continue
            if not re.fullmatch(r"\d{1,12}", head.strip()):
                detail = f"line {line} should be a count of atoms"
                break
            count = int(head)
            comment = stream.readline()
            kept = list(islice(stream, min(count, MOST_ATOMS)))
            skipped = sum(1 for _ in islice(stream, count - len(kept)))
            given = len(kept) + skipped
            if given and not (kept or [""])[-1].strip():
                given -= 1
            if given < count:
                detail = f"line {line} announces {count} atoms, {given} lines follow"
                break
            line += 1 + count
            found = _IDENTIFIER.search(comment)
            name = found[1].strip("\"'{}") if found else f"{stem}-{k}"
            used[name] = used.get(name, 0) + 1
            name = name if used[name] == 1 else f"{name}-{used[name]}"
            k += 1
            if skipped:
                yield Record(name, (f"more than {MOST_ATOMS} atoms", str(count)), rejected)
            else:
                yield Record(name, f"{count}\n{comment.rstrip()}\n{''.join(kept)}", parse_frame)
        else:
            return
    yield Record(f"{stem}-{k}", ("the file cannot be read further", detail), rejected)


def parse_frame(text: str) -> ReadStructure:
    """The crystal of one frame.

    Raises
    ------
    RejectError
        When it is not three-dimensional, disordered, or cannot be read.
    """
    from ase.io.extxyz import read_xyz as read

    count = int(text.split("\n", 1)[0])
    if count > MOST_ATOMS:
        raise RejectError(f"more than {MOST_ATOMS} atoms", str(count))
    notes: tuple[str, ...] = ()
    comment = text.split("\n", 2)[1]
    if "Properties" not in comment or "Properties=species:S:1" in comment.replace('"', ""):
        changed = _ISOTOPE.sub(r"\1H", text)
        if changed != text:
            notes, text = ("deuterium and tritium are read as hydrogen",), changed
    try:
        (atoms,) = read(io.StringIO(text), slice(None))
    except Exception as error:  # ase raises anything on damaged text
        raise RejectError("the frame cannot be read", first_line(error)) from None
    return of_atoms(atoms, notes)


def of_atoms(atoms: Atoms, notes: tuple[str, ...] = ()) -> ReadStructure:
    """An ase.Atoms object with energy, moments and constraints.

    Raises
    ------
    RejectError
        When it is not periodic in three directions, or disordered.
    """
    if not all(atoms.pbc) or not abs(atoms.cell.volume) > 1e-6:
        raise RejectError("not periodic in three directions")
    for key in ("occupancy", "occupancies"):
        values = atoms.arrays.get(key)
        if values is not None and values.dtype.kind == "f" and (values < 0.999).any():
            raise RejectError("partial occupancy")
    if atoms.info.get("occupancy") and _is_partial(atoms.info["occupancy"]):
        raise RejectError("partial occupancy")
    results = getattr(atoms.calc, "results", None) or {}
    magmoms = results.get("magmoms")
    if magmoms is None:
        magmoms = next(
            (atoms.arrays[n] for n in ("magmoms", "initial_magmoms") if n in atoms.arrays), None
        )
    moments = None
    if magmoms is not None and np.asarray(magmoms).dtype.kind in "biuf":
        moments = vectors(np.asarray(magmoms, dtype=float))
    fixed, said = _fixed(atoms)
    properties = {
        k: n for k, v in atoms.info.items() if isinstance(k, str) and (n := number(v)) is not None
    }
    for key in ("material_id", "id"):
        properties.pop(key, None)
    return ReadStructure(
        id="",
        cell=from_atoms(atoms),
        energy=number(results.get("energy")),
        moments=moments,
        fixed=fixed,
        properties=properties,
        notes=(*notes, *said),
    )


def _is_partial(occupancy: Any) -> bool:
    """Of ASE's CIF reader: a dictionary of site to element to occupancy."""
    try:
        return any(len(kinds) > 1 or min(kinds.values()) < 0.999 for kinds in occupancy.values())
    except (AttributeError, TypeError, ValueError):
        return False


def _fixed(atoms: Atoms) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(N, 3) what ASE's constraints hold along the axes of the cell; notes on others."""
    from ase.constraints import FixAtoms, FixCartesian, FixScaled

    mask = np.zeros((len(atoms), 3), dtype=bool)
    said: list[str] = []
    for constraint in atoms.constraints:
        try:
            if isinstance(constraint, FixAtoms):
                mask[constraint.get_indices()] = True
            elif isinstance(constraint, FixScaled) or (
                isinstance(constraint, FixCartesian)
                and (np.asarray(constraint.mask).all() or not _tilted(atoms))
            ):
                mask[constraint.get_indices()] |= np.asarray(constraint.mask, dtype=bool)  # type: ignore[no-untyped-call]
            else:
                said.append(f"constraint {type(constraint).__name__} is not used")
        except (IndexError, TypeError, ValueError):
            said.append(f"constraint {type(constraint).__name__} is damaged and not used")
    return (mask if mask.any() else None), tuple(dict.fromkeys(said))


def _tilted(atoms: Atoms) -> bool:
    cell = np.array(atoms.cell)
    return bool(np.abs(cell - np.diag(np.diag(cell))).max() > 1e-6)
