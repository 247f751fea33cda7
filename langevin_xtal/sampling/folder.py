"""A folder of sampled candidates: written as they come, continued when interrupted.

``run.json`` says what the folder holds. The same run finds what is there and samples only what is
missing, so more candidates can be added and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from langevin_xtal.config.tolerances import SYMPRECS
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cif import cif_text
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import InputError
from langevin_xtal.files import clear_left, replacing, unwritable, write_rows, write_text
from langevin_xtal.sampling.postprocess import Rejection

COLUMNS = (
    "index",
    "file",
    "formula",
    "request",
    "group",
    "found_0.001",
    "found_0.01",
    "found_0.1",
    "symmetry",
    "sites",
    "atoms",
    "volume_per_atom",
    "min_distance",
    "attempt",
    "setting_rank",
    "group_probability",
    "assignment_probability",
)
FILLED_LATER = ("model_settings",)
"""Settings that a folder may begin without."""
REJECT_COLUMNS = ("index", "attempt", "request", "reason")


class CandidateFolder:
    """Where ``langevin-xtal sample`` writes.

    Parameters
    ----------
    path
        Made when missing.
    settings
        What determines the candidates; a folder with other settings is refused.
    file_format
        ``"cif"``, ``"xyz"`` or ``"poscar"``.

    Raises
    ------
    InputError
        When the folder holds another run or cannot be written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, object], *, file_format: str = "cif"
    ) -> None:
        self.path, self.file_format = path, file_format
        try:
            path.mkdir(parents=True, exist_ok=True)
            clear_left(path)
            self._claim({**settings, "format": file_format})
        except OSError as error:
            raise unwritable(
                f"folder {path}", error, InputError, "give --out a folder you may write to"
            ) from None
        rows = _read(path / "candidates.csv", COLUMNS)
        self.rows = {int(r["index"]): r for r in rows if (path / r["file"]).is_file()}
        self.rejects = {
            (int(r["index"]), int(r["attempt"])): r
            for r in _read(path / "rejects.csv", REJECT_COLUMNS)
        }

    def is_done(self, index: int, attempts: int) -> bool:
        """Whether a candidate is there, or was given up after ``attempts`` rejections."""
        return index in self.rows or (index, attempts - 1) in self.rejects

    def add(self, candidates: Iterable[Candidate], rejections: Iterable[Rejection]) -> None:
        """Write structures, then both tables; each file complete or not at all."""
        for candidate in candidates:
            name = f"{candidate.index:04d}_{candidate.formula}_{candidate.space_group.number}"
            name += {"cif": ".cif", "xyz": ".xyz", "poscar": ".vasp"}[self.file_format]
            write_text(self.path / name, self._text(candidate))
            self.rows[candidate.index] = table_row(candidate) | {"file": name}
        for r in rejections:
            self.rejects[r.index, r.attempt] = {
                "index": str(r.index),
                "attempt": str(r.attempt),
                "request": str(r.request),
                "reason": r.reason,
            }
        _write_table(
            self.path / "candidates.csv", COLUMNS, [self.rows[k] for k in sorted(self.rows)]
        )
        rejects = [self.rejects[k] for k in sorted(self.rejects)]
        _write_table(self.path / "rejects.csv", REJECT_COLUMNS, rejects)

    def _text(self, candidate: Candidate) -> str:
        if self.file_format == "cif":
            return cif_text(candidate)
        import io

        from ase.io import write

        buffer = io.StringIO()
        kind = {"xyz": "extxyz", "poscar": "vasp"}[self.file_format]
        atoms = candidate.atoms
        write(buffer, atoms[atoms.numbers.argsort(kind="stable")], format=kind)
        return buffer.getvalue()

    def _claim(self, settings: Mapping[str, object]) -> None:
        record = self.path / "run.json"
        mine = json.loads(json.dumps(settings))
        if record.exists():
            try:
                theirs = json.loads(record.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                theirs = None
            if isinstance(theirs, dict):  # versions before 0.6 did not write them
                theirs = {name: mine.get(name) for name in FILLED_LATER} | theirs
            if theirs != mine:
                raise InputError(
                    f"folder {self.path} holds another run (see its run.json); give --out another "
                    "folder, or the same options to continue it"
                )
        elif any(self.path.glob("candidates.csv")):
            raise InputError(f"folder {self.path} holds candidates without a run.json")
        write_text(record, json.dumps(mine, indent=2, sort_keys=True) + "\n")


def table_row(candidate: Candidate) -> dict[str, str]:
    """What the summary table says of a candidate; all but the file's name."""
    choice = candidate.request.choice
    return {
        "index": str(candidate.index),
        "formula": candidate.formula,
        "request": str(candidate.request),
        "group": str(candidate.space_group.number),
        **{f"found_{symprec:g}": str(candidate.detected[symprec]) for symprec in SYMPRECS},
        "symmetry": "supergroup" if candidate.is_supergroup else "as requested",
        "sites": sites_text(candidate),
        "atoms": str(len(candidate.atom_site)),
        "volume_per_atom": f"{candidate.volume / len(candidate.atom_site):.2f}",
        "min_distance": f"{candidate.min_distance:.2f}",
        "attempt": str(candidate.attempt),
        "setting_rank": "" if choice is None else str(choice.rank),
        "group_probability": "" if choice is None else f"{choice.group_probability:.3g}",
        "assignment_probability": "" if choice is None else f"{choice.assignment_probability:.3g}",
    }


def sites_text(candidate: Candidate) -> str:
    """Wyckoff positions of each element's sites, as ``Cu 4c+4c K 4c``."""
    places: dict[str, list[str]] = {}
    for number, name in zip(candidate.numbers, candidate.wyckoff, strict=True):
        places.setdefault(SYMBOLS[number], []).append(name)
    return " ".join(f"{s} {'+'.join(places[s])}" for s in candidate.request.elements)


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a table written by :meth:`CandidateFolder.add`."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            header, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error):
        sound = False
    else:
        sound = header == columns and all(
            set(row) == set(columns)
            and None not in row.values()
            and row["index"].isdecimal()
            and row["attempt"].isdecimal()
            for row in rows
        )
    if not sound:
        raise InputError(f"{path} is damaged; remove it to sample again, or give another folder")
    return rows


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    with replacing(path, newline="") as stream:
        write_rows(stream, columns, rows, lineterminator="\r\n")
