"""VASP inputs by pymatgen's input sets: INCAR, KPOINTS, POSCAR, and POTCAR or POTCAR.spec.

What a set decides (functional, cut-off, k-points, starting moments, +U, smearing, symmetry) is
left to it; ``overrides`` change single INCAR tags. POTCAR files are licensed and never shipped:
they are taken from the folder that pymatgen knows as ``PMG_VASP_PSP_DIR``; without it, a
POTCAR.spec lists the pseudopotentials by name.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from langevin_xtal.config.export import CellChoice, PotcarChoice, VaspConfig
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.errors import InputError
from langevin_xtal.export.cells import (
    carried_notes,
    export_structure,
)
from langevin_xtal.export.folders import Inputs, write_folders
from langevin_xtal.export.jobs import Job
from langevin_xtal.export.manifest import Manifest
from langevin_xtal.export.notes import Notes

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.io.vasp.sets import VaspInputSet

INPUT_SETS = (
    "MPRelaxSet",
    "MPMetalRelaxSet",
    "MPScanRelaxSet",
    "MP24RelaxSet",
    "MITRelaxSet",
    "MatPESRelaxSet",
    "MPStaticSet",
    "MPScanStaticSet",
    "MP24StaticSet",
    "MatPESStaticSet",
)
"""Names of ``pymatgen.io.vasp.sets`` that need nothing but a structure."""


class VaspSettings(TypedDict):
    """What determines VASP inputs besides the structure."""

    export: str
    input_set: str
    potcar: PotcarChoice
    overrides: dict[str, object]
    cell: CellChoice
    symprec: float


_BY_ELEMENT = ("MAGMOM", "LDAUU", "LDAUJ", "LDAUL")


def export_vasp(
    entries: Sequence[Entry],
    out: str | os.PathLike[str],
    *,
    input_set: str = VaspConfig.input_set,
    potcar: PotcarChoice = VaspConfig.potcar,
    overrides: Mapping[str, object] | None = None,
    cell: CellChoice = VaspConfig.cell,
    symprec: float = VaspConfig.symprec,
    command: str = VaspConfig.command,
    concurrent: int = VaspConfig.concurrent,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """One folder of VASP inputs per candidate, a manifest and a job-array script.

    Parameters
    ----------
    entries
        By rank, the best first.
    out
        Folder, made when missing. Folders of the same candidates and settings in it are kept, so
        an interrupted export continues.
    input_set
        One of :data:`INPUT_SETS`.
    potcar
        ``"files"`` writes POTCAR, ``"spec"`` POTCAR.spec, ``"auto"`` POTCAR where the
        pseudopotentials are installed.
    overrides
        INCAR tags; None removes one. MAGMOM, LDAUU, LDAUJ and LDAUL take a dictionary by element.
    cell
        ``"primitive"``, ``"conventional"`` (both standardised) or ``"stored"``.
    symprec
        Tolerance of the symmetry search [Å].
    command
        Run in each folder by the job script; ``concurrent`` tasks at a time.
    force
        Replace folders that hold something else.
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        For unknown sets, tags or options, pseudopotentials that are asked for and missing, and
        folders that hold something else.
    LangevinXtalError
        When the disk is full, or no candidate could be written.
    """
    config = VaspConfig(input_set=input_set, potcar=potcar, cell=cell, symprec=symprec)
    settings = vasp_settings("vasp", config, overrides)
    writer = VaspWriter(input_set, settings["potcar"], overrides or {})
    notes = vasp_notes(potcar, settings, os.fspath(out))

    def make(entry: Entry, name: str, notes: Notes) -> Inputs:
        structure = export_structure(entry, cell, symprec)
        for note in carried_notes(entry, cell):
            notes.add(name, note)
        files, columns = writer.inputs(structure, name, notes)
        return Inputs(files, columns)

    return write_folders(
        entries,
        out,
        make,
        settings=settings,
        job=Job("vasp", command, concurrent, needs="POTCAR"),
        force=force,
        progress=progress,
        notes=notes,
    )


class VaspWriter:
    """Texts of VASP input files for one input set.

    Parameters
    ----------
    input_set
        One of :data:`INPUT_SETS`.
    potcar
        ``"spec"``, ``"files"`` or ``"auto"``: files, and a specification where one is missing.
    overrides
        As in :func:`export_vasp`.
    options
        Further arguments of the input set.

    Raises
    ------
    InputError
        For an unknown set, unusable tags, or files that are asked for where none are installed.
    """

    def __init__(
        self,
        input_set: str,
        potcar: PotcarChoice,
        overrides: Mapping[str, object],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.input_set = _input_set(input_set)
        self.potcar, self.overrides, self.options = potcar, overrides, options or {}
        self._potentials: dict[tuple[str, str], str | None] = {}

    def inputs(
        self, structure: Structure, name: str, notes: Notes
    ) -> tuple[dict[str, str], dict[str, str]]:
        """File name to content, and columns of the manifest, for one structure."""
        import pymatgen.core

        chosen = self._chosen(structure)
        _check_elements(chosen, structure)
        given = chosen.get_input_set(potcar_spec=True)
        given["POSCAR"].comment = name
        files = {
            key: _ended(str(given[key])) for key in ("INCAR", "KPOINTS", "POSCAR") if given[key]
        }
        symbols = list(chosen.potcar_symbols)
        text = self._potcar_text(symbols, str(chosen.potcar_functional), notes, name)
        files["POTCAR.spec" if text is None else "POTCAR"] = (
            _ended("\n".join(symbols)) if text is None else text
        )
        columns = {
            "atoms": str(len(structure)),
            "potcar": "spec" if text is None else "files",
            "potcar_symbols": " ".join([str(chosen.potcar_functional), *symbols]),
            "writer": f"pymatgen {pymatgen.core.__version__}",
        }
        return files, columns

    def _chosen(self, structure: Structure) -> VaspInputSet:
        overrides = {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in self.overrides.items()
        }
        return self.input_set(structure, user_incar_settings=overrides, **self.options)

    def _potcar_text(
        self, symbols: list[str], functional: str, notes: Notes, name: str
    ) -> str | None:
        """Content of POTCAR, or None where a specification is to be written."""
        if self.potcar == "spec":
            return None
        texts = [self._potential(symbol, functional, notes) for symbol in symbols]
        if None not in texts:
            return "".join(str(text) for text in texts)
        missing = ", ".join(s for s, text in zip(symbols, texts, strict=True) if text is None)
        where = f"{functional} pseudopotentials {missing} are not in PMG_VASP_PSP_DIR"
        if self.potcar == "files":
            raise InputError(f"{where}; install them, or give --potcar spec")
        notes.add(name, f"{where}: POTCAR.spec is written instead of POTCAR")
        return None

    def _potential(self, symbol: str, functional: str, notes: Notes) -> str | None:
        """Text of a pseudopotential, read once; None where it is not installed."""
        from pymatgen.io.vasp.inputs import PotcarSingle

        key = (symbol, functional)
        if key not in self._potentials:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    single = PotcarSingle.from_symbol_and_functional(*key)
                except (FileNotFoundError, KeyError):
                    self._potentials[key] = None
                    return None
                known = single.identify_potcar()[0]
            if known and functional not in known:
                notes.say(f"the POTCAR of {symbol} is of {', '.join(known)}, not of {functional}")
            elif caught:
                notes.say(f"the POTCAR of {symbol} ({functional}) is unknown to pymatgen")
            self._potentials[key] = str(single).strip("\n") + "\n"
        return self._potentials[key]


def vasp_settings(
    export: str, config: VaspConfig, overrides: Mapping[str, object] | None
) -> VaspSettings:
    """What determines VASP inputs besides the structure, with ``"auto"`` resolved.

    Raises
    ------
    InputError
        For options that cannot be used.
    """
    folder = _potcar_folder()
    if config.potcar == "files" and not folder:
        raise InputError(
            "POTCAR files are asked for, but pymatgen knows no folder of pseudopotentials: set "
            "PMG_VASP_PSP_DIR to it, or give --potcar spec"
        )
    for key in overrides or {}:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", key):
            raise InputError(f"INCAR tag {key!r} is not one: tags are like ENCUT, in capitals")
    return {
        "export": export,
        "input_set": config.input_set,
        "potcar": "spec" if config.potcar == "auto" and not folder else config.potcar,
        "overrides": {k: overrides[k] for k in sorted(overrides)} if overrides else {},
        "cell": config.cell,
        "symprec": config.symprec,
    }


def vasp_notes(potcar: str, settings: VaspSettings, out: str) -> Notes:
    """Notes that begin with unknown tags, and that POTCAR files are not written where it is so."""
    from pymatgen.io.vasp import Incar

    notes = Notes()
    for tag in settings["overrides"]:
        if tag not in Incar.INCAR_PARAMS:
            notes.say(f"pymatgen knows no INCAR tag {tag}; VASP ignores tags it does not know")
    if potcar == "auto" and settings["potcar"] == "spec":
        functional = _input_set(settings["input_set"])().potcar_functional
        notes.say(
            "POTCAR.spec is written instead of POTCAR, as pymatgen knows no folder of "
            "pseudopotentials (PMG_VASP_PSP_DIR); where they are installed, "
            f"'PMG_DEFAULT_FUNCTIONAL={functional} pmg potcar --recursive {out}' makes the files"
        )
    return notes


def read_incar_tag(text: str) -> tuple[str, object]:
    """``"ENCUT=600"`` to a tag and its value; ``"MAGMOM=Fe:5,O:0.6"`` to values by element.

    ``"LASPH="`` gives None, which removes the tag.

    Raises
    ------
    InputError
        When the text is of another form.
    """
    tag, sign, value = (part.strip() for part in text.partition("="))
    tag = tag.upper()
    if not sign or not re.fullmatch(r"[A-Z][A-Z0-9_]*", tag):
        raise InputError(f"--incar {text!r} should be like ENCUT=600")
    if not value:
        return tag, None
    if tag in _BY_ELEMENT:
        pairs = re.findall(r"([A-Z][a-z]?)\s*:\s*([+-]?[0-9.]+)", value)
        if ",".join(f"{k}:{v}" for k, v in pairs) != re.sub(r"\s", "", value):
            raise InputError(f"--incar {text!r} should give a value by element: {tag}=Fe:5,O:0.6")
        number = int if tag == "LDAUL" else float
        return tag, {k: number(v) for k, v in pairs}
    from pymatgen.io.vasp import Incar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Incar.proc_val(tag, value)
    known: Any = Incar.INCAR_PARAMS
    kind = known.get(tag, {}).get("type")
    if isinstance(found, str) and kind in ("int", "float", "bool"):
        raise InputError(f"--incar {text!r}: {tag} takes a value of type {kind}")
    return tag, found


def _input_set(name: str) -> type[VaspInputSet]:
    from pymatgen.io.vasp import sets

    found = getattr(sets, name, None) if name in INPUT_SETS else None
    if found is None:
        there = ", ".join(n for n in INPUT_SETS if hasattr(sets, n))
        raise InputError(f"input set {name!r} is not known: give one of {there}")
    chosen: type[VaspInputSet] = found
    return chosen


def _check_elements(chosen: VaspInputSet, structure: Structure) -> None:
    known = chosen._config_dict["POTCAR"]
    missing = [e.symbol for e in structure.composition.elements if e.symbol not in known]
    if missing:
        raise InputError(
            f"{type(chosen).__name__} has no pseudopotential for {', '.join(missing)}"
        )


def _potcar_folder() -> str:
    """Where pymatgen looks for pseudopotentials; empty without such a folder."""
    from pymatgen.core import SETTINGS

    folder = SETTINGS.get("PMG_VASP_PSP_DIR")
    return folder if folder and os.path.isdir(os.path.expanduser(folder)) else ""


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
