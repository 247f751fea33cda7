"""JSON of pymatgen, OPTIMADE and ASE, read as plain data: nothing it names is imported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from langevin_xtal.crystal.cell import cell_from_parameters
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import DataError, LatticeError, RejectError
from langevin_xtal.structures.record import (
    MOST_ATOMS,
    ReadStructure,
    Record,
    first_line,
    number,
    rejected,
)

ENERGIES = ("energy", "final_energy", "total_energy")
"""Names of the total energy of a cell [eV]."""
IDENTIFIERS = ("material_id", "id", "entry_id")
Document = dict[str, Any]
"""A table of foreign JSON, whatever it holds: what is wrong in it is found where it is used."""
_FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def read_json(text: str, stem: str) -> tuple[Iterator[Record], int]:
    """Records of a list of structures or entries, a dictionary of them, or a single one.

    Raises
    ------
    DataError
        When the text is no JSON, or holds nothing that could be structures.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is not JSON: {first_line(error)}") from None
    items = _items(data, stem)
    if items is None:
        raise DataError("it is JSON without structures of pymatgen, OPTIMADE or ASE")
    return (_record(name, entry) for name, entry in items), len(items)


def holds_structures(text: str) -> bool:
    """Whether JSON text mentions what structures consist of, without parsing it."""
    marks = ('"lattice"', '"lattice_vectors"', '"structure"', '"positions"')
    return any(mark in text for mark in marks)


def _items(data: object, stem: str) -> list[tuple[str, object]] | None:
    if isinstance(data, dict) and ("meta" in data or "jsonapi" in data or "links" in data or (
        isinstance(data.get("data"), (list, dict)) and not _is_structure(data)
    )):  # fmt: skip
        inner = data.get("data")
        if isinstance(inner, list):
            return [(f"{stem}-{k}", entry) for k, entry in enumerate(inner)]
        if isinstance(inner, dict) and ("attributes" in inner or _is_any(inner)):
            return [(stem, inner)]
    if isinstance(data, dict):
        if _is_any(data):
            return [(f"{stem}-0", data)]
        for key in ("entries", "structures"):
            if isinstance(data.get(key), list):
                return [(f"{stem}-{k}", entry) for k, entry in enumerate(data[key])]
        return [(str(k), v) for k, v in data.items() if k not in ("ids", "nextid")]
    if isinstance(data, list):
        return [(f"{stem}-{k}", entry) for k, entry in enumerate(data)]
    return None


def _is_structure(entry: object) -> bool:
    return isinstance(entry, dict) and "lattice" in entry and "sites" in entry


def _is_atoms(entry: object) -> bool:
    return isinstance(entry, dict) and {"numbers", "positions", "cell"} <= set(entry)


def _is_optimade(entry: object) -> bool:
    return isinstance(entry, dict) and "lattice_vectors" in (entry.get("attributes") or entry)


def _is_any(entry: object) -> bool:
    inner = entry.get("structure") if isinstance(entry, dict) else None
    return any(
        test(one)
        for test in (_is_structure, _is_atoms, _is_optimade)
        for one in (entry, inner)
        if isinstance(one, dict)
    )


def _record(name: str, entry: object) -> Record:
    if not isinstance(entry, dict):
        return Record(name, ("not a structure", type(entry).__name__), rejected)
    structure: object = entry
    if not (_is_structure(entry) or _is_atoms(entry) or _is_optimade(entry)):
        structure = entry.get("structure")
    stored = entry.get("properties")
    values = dict(stored) if isinstance(stored, dict) else {}
    if structure is not entry or _is_atoms(entry):
        values |= {k: v for k, v in entry.items() if k != "properties"}
    if _is_optimade(entry):
        attributes = entry.get("attributes")
        values |= attributes if isinstance(attributes, dict) else {}
        values["id"] = entry.get("id", name)
    for pairs in ("key_value_pairs", "data"):
        if _is_atoms(entry) and isinstance(entry.get(pairs), dict):
            values |= entry[pairs]
    given = [values.pop(key, None) for key in IDENTIFIERS]
    name = str(next((g for g in given if isinstance(g, (str, int)) and g != ""), name))
    if _is_atoms(entry):
        for key in ("ctime", "mtime", "calculator_parameters", "nextid"):
            values.pop(key, None)
    if not isinstance(structure, dict):
        return Record(name, ("not a pymatgen structure", ""), rejected)
    properties = {k: n for k, v in values.items() if (n := number(v)) is not None}
    energy = next((properties.get(key) for key in ENERGIES if key in properties), None)
    correction = properties.get("correction", 0.0) if structure is not entry else 0.0
    energy = None if energy is None else energy + correction
    if _is_structure(structure):
        plain = {k: structure.get(k) for k in ("lattice", "sites")}
        return Record(name, (plain, energy), parse_pymatgen, properties)
    if _is_optimade(structure):
        return Record(name, structure, parse_optimade, properties)
    if _is_atoms(structure):
        return Record(name, structure, parse_ase, properties)
    return Record(name, ("not a pymatgen structure", ""), rejected)


# --- pymatgen -----------------------------------------------------------------------------------


def parse_pymatgen(payload: tuple[Document, float | None]) -> ReadStructure:
    """The crystal of a pymatgen dictionary and its total energy.

    Raises
    ------
    RejectError
        When it is disordered, or no structure.
    """
    data, energy = payload
    try:
        lattice = _matrix(data["lattice"])
        sites = data["sites"]
        if len(sites) > MOST_ATOMS:
            raise RejectError(f"more than {MOST_ATOMS} atoms", str(len(sites)))
        numbers, frac, spins, states, fixed = [], [], [], [], []
        for place, site in enumerate(sites):
            kinds = site["species"]
            if len(kinds) != 1 or abs(float(kinds[0].get("occu", 1)) - 1) > 1e-3:
                raise RejectError("partial occupancy", f"site {place + 1}")
            kind, own = kinds[0], site.get("properties") or {}
            numbers.append(species_number(str(kind["element"])))
            frac.append(np.array(site["abc"], dtype=float).reshape(3))
            moment = own.get("magmom")
            spin = kind.get("spin") or (kind.get("properties") or {}).get("spin")
            spins.append(_moment(spin if moment is None else moment))
            states.append(_state(kind, own))
            flags = own.get("selective_dynamics")
            fixed.append([not flag for flag in flags] if flags is not None else [False] * 3)
        masks = np.array(fixed, dtype=bool).reshape(-1, 3)
    except _FAULTS as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise RejectError("not a pymatgen structure", detail) from None
    if lattice is None:
        raise RejectError("not periodic in three directions")
    moments = np.array([np.zeros(3) if s is None else s for s in spins]).reshape(-1, 3)
    oxidation = np.array([np.nan if s is None else s for s in states])
    return ReadStructure(
        id="",
        cell=(lattice, np.array(frac).reshape(-1, 3), np.array(numbers, dtype=np.int64)),
        energy=energy,
        moments=moments if any(s is not None for s in spins) else None,
        fixed=masks if masks.any() else None,
        oxidation=oxidation if np.isfinite(oxidation).any() else None,
    )


def _matrix(lattice: Document) -> np.ndarray | None:
    """Rows of a cell [Å], None where it is not periodic in three directions."""
    if not all(lattice.get("pbc", (True, True, True))):
        return None
    if "matrix" in lattice:
        return np.array(lattice["matrix"], dtype=float)
    names = ("a", "b", "c", "alpha", "beta", "gamma")
    try:
        return cell_from_parameters([float(lattice[n]) for n in names])
    except LatticeError as error:
        raise RejectError("the cell lengths and angles form no cell", str(error)) from None


def _moment(value: object) -> np.ndarray | None:
    """(3,) Cartesian moment of a number, a vector, or a dictionary of pymatgen's Magmom."""
    if isinstance(value, dict):
        axis = np.array(value.get("saxis", (0, 0, 1)), dtype=float)
        value = value.get("moment")
        if not isinstance(value, list):
            size = float(axis @ axis) ** 0.5
            return None if value is None else float(value) * axis / (size or 1.0)
        if not np.allclose(axis, (0, 0, 1)):
            raise ValueError("moments along another axis")
    if value is None or isinstance(value, (str, bool)):
        return None
    found = np.array(value, dtype=float)
    return found if found.shape == (3,) else np.array([0.0, 0.0, float(found)])


def _state(kind: Document, own: Document) -> float | None:
    value = kind.get("oxidation_state", own.get("oxidation_state"))
    if value is None:
        return None
    return number(value)


def species_number(species: str) -> int:
    """Of an element or ion: ``"Fe"``, ``"Fe3+"``, ``"D"``.

    Raises
    ------
    RejectError
        When it is none.
    """
    import re

    found = re.match(r"([A-Z][a-z]?)(?![a-z])", species)
    symbol = found[1] if found else ""
    symbol = {"D": "H", "T": "H"}.get(symbol, symbol)
    if symbol not in SYMBOLS[1:]:
        raise RejectError("unknown element", species[:40])
    return SYMBOLS.index(symbol)


# --- OPTIMADE -----------------------------------------------------------------------------------


def parse_optimade(data: Document) -> ReadStructure:
    """The crystal of an OPTIMADE entry.

    Raises
    ------
    RejectError
        When it is disordered, not three-dimensional, or no structure.
    """
    try:
        attributes = data.get("attributes") or data
        periodic = attributes.get("dimension_types")
        if periodic is not None and not all(periodic):
            raise RejectError("not periodic in three directions")
        lattice = np.array(attributes["lattice_vectors"], dtype=float)
        positions = np.array(attributes["cartesian_site_positions"], dtype=float)
        kinds = {kind["name"]: kind for kind in attributes.get("species") or ()}
        names = attributes["species_at_sites"]
        if len(names) > MOST_ATOMS:
            raise RejectError(f"more than {MOST_ATOMS} atoms", str(len(names)))
        numbers = []
        for name in names:
            kind = kinds.get(name, {"chemical_symbols": [name], "concentration": [1.0]})
            symbols = kind["chemical_symbols"]
            if len(symbols) != 1 or abs(float(kind.get("concentration", [1])[0]) - 1) > 1e-3:
                raise RejectError("partial occupancy", f"species {name}")
            numbers.append(species_number(str(symbols[0])))
        frac = positions @ np.linalg.inv(lattice)
    except (*_FAULTS, np.linalg.LinAlgError) as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise RejectError("not an OPTIMADE structure", detail) from None
    return ReadStructure(id="", cell=(lattice, frac, np.array(numbers, dtype=np.int64)))


# --- ASE ----------------------------------------------------------------------------------------


def parse_ase(data: Document) -> ReadStructure:
    """The crystal of a row of ASE's JSON database.

    Raises
    ------
    RejectError
        When it is not three-dimensional, or no structure.
    """
    try:
        if not np.all(_array(data.get("pbc", [True] * 3))):
            raise RejectError("not periodic in three directions")
        lattice = _array(data["cell"]).astype(float)
        numbers = _array(data["numbers"]).astype(np.int64)
        positions = _array(data["positions"]).astype(float)
        frac = positions @ np.linalg.inv(lattice)
        magmoms = data.get("magmoms", data.get("initial_magmoms"))
        moments = None if magmoms is None else vectors(_array(magmoms).astype(float))
    except (*_FAULTS, np.linalg.LinAlgError) as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise RejectError("not a structure of ASE", detail) from None
    return ReadStructure(
        id="", cell=(lattice, frac, numbers), energy=number(data.get("energy")), moments=moments
    )


def vectors(moments: np.ndarray) -> np.ndarray | None:
    """(N, 3) of collinear (N,) or other moments; None where all are zero."""
    if not np.abs(moments).max(initial=0.0) > 0:
        return None
    if moments.ndim == 2:
        return moments
    return np.stack([0 * moments, 0 * moments, moments], axis=1)


def _array(value: object) -> np.ndarray:
    """A list, or what ASE writes for an array or a cell."""
    if isinstance(value, dict):
        if "__ndarray__" in value:
            shape, dtype, flat = value["__ndarray__"]
            if dtype not in ("float64", "int64", "int32", "float32", "bool"):
                raise ValueError(f"an array of type {dtype}")
            return np.array(flat, dtype=dtype).reshape(shape)
        return _array(value["array"])
    return np.array(value)
