"""288 prototypes through every reader and writer: the same crystal comes back.

By default every twelfth prototype; ``LX_ALL_PROTOTYPES=1`` takes all (minutes).
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar

import langevin_xtal as lx
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.dataset.prepare import prepare
from langevin_xtal.dataset.readers import read, read_records
from langevin_xtal.export.structures import export_cif, export_xyz

STEP = 1 if os.environ.get("LX_ALL_PROTOTYPES") else 12
LIBRARY = AFLOW_PROTOTYPE_LIBRARY[::STEP]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def prototype(entry: dict[str, Any]) -> Structure:
    made: Structure = entry["snl"].structure
    return Structure(made.lattice, [s.specie.symbol for s in made], made.frac_coords % 1.0)


def same_atoms(cell: Cell, structure: Structure, tolerance: float) -> bool:
    """The same atoms in the same cell, whatever its orientation and their order."""
    lattice, frac, numbers = cell
    theirs = structure.lattice.matrix
    if not np.allclose(lattice @ lattice.T, theirs @ theirs.T, atol=tolerance * 30):
        return False
    if sorted(numbers) != sorted(structure.atomic_numbers):
        return False
    delta = frac[:, None] - structure.frac_coords
    delta -= np.rint(delta)
    far = np.linalg.norm(delta @ theirs, axis=2)
    far[numbers[:, None] != np.array(structure.atomic_numbers)] = np.inf
    return bool(max(far.min(axis=0).max(), far.min(axis=1).max()) < tolerance)


def same_crystal(cell: Cell, structure: Structure) -> bool:
    """The same crystal in any cell."""
    found = Structure(cell[0], cell[2], cell[1])
    per_atom = found.volume / len(found), structure.volume / len(structure)
    matcher = StructureMatcher(ltol=0.01, stol=0.02, angle_tol=0.5, scale=False)
    return abs(per_atom[0] / per_atom[1] - 1) < 1e-3 and bool(matcher.fit(found, structure))


def without_operations(text: str) -> str:
    pattern = r"loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n(?:  .*\n)*"
    return re.sub(pattern, "", text)


def ase_file(name: str, kind: str, **options: Any) -> Callable[[Structure, Path], Path]:
    def write(structure: Structure, folder: Path) -> Path:
        atoms = structure.to_ase_atoms()
        if kind == "espresso-in":
            options["pseudopotentials"] = {s: f"{s}.upf" for s in set(atoms.symbols)}
        ase.io.write(folder / name, atoms, format=kind, **options)
        return folder / name

    return write


def text_file(
    name: str, make: Callable[[Structure], str | bytes]
) -> Callable[[Structure, Path], Path]:
    def write(structure: Structure, folder: Path) -> Path:
        content = make(structure)
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return folder / name

    return write


def optimade(structure: Structure) -> str:
    symbols = [site.specie.symbol for site in structure]
    attributes = {
        "lattice_vectors": structure.lattice.matrix.tolist(),
        "cartesian_site_positions": structure.cart_coords.tolist(),
        "species_at_sites": symbols,
        "species": [
            {"name": s, "chemical_symbols": [s], "concentration": [1.0]}
            for s in sorted(set(symbols))
        ],
        "dimension_types": [1, 1, 1],
    }
    entry = {"id": "x", "type": "structures", "attributes": attributes}
    return json.dumps({"data": [entry], "meta": {}})


def own_cif(structure: Structure, folder: Path) -> Path:
    export_cif([own_entry(structure)], folder / "cif")
    return next((folder / "cif").glob("*.cif"))


def own_xyz(structure: Structure, folder: Path) -> Path:
    export_xyz([own_entry(structure)], folder / "own.xyz")
    return folder / "own.xyz"


def own_entry(structure: Structure) -> Entry:
    cell = structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)
    group = structure.get_space_group_info(symprec=1e-3)[1]
    return Entry("one", cell, structure.composition.reduced_formula, group, group)


def database(structure: Structure, folder: Path) -> Path:
    with ase.db.connect(folder / "rows.db") as rows:
        rows.write(structure.to_ase_atoms())
    return folder / "rows.db"


def archive(structure: Structure, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/POSCAR", Poscar(structure).get_str(significant_figures=12))
        made.writestr("a/INCAR", "ENCUT = 500\n")
    return folder / "all.zip"


def plain_cif(structure: Structure) -> str:
    return str(CifWriter(structure, significant_figures=12))


def poscar(structure: Structure) -> str:
    return Poscar(structure).get_str(significant_figures=12)


def cartesian(structure: Structure) -> str:
    text = Poscar(structure).get_str(direct=False, significant_figures=12)
    lines = text.splitlines()
    lines[1] = f"{-structure.volume:.10f}"  # VASP's way to give the volume
    scale = (structure.volume) ** (1 / 3)
    for k in (2, 3, 4, *range(8, 8 + len(structure))):
        words = lines[k].split()
        numbers = [f"{float(x) / scale:.14f}" for x in words[:3]]
        lines[k] = " ".join([*numbers, *words[3:]])
    return "\n".join(lines) + "\n"


WRITERS: dict[str, tuple[Callable[[Structure, Path], Path], float]] = {
    "pymatgen CIF, P1": (text_file("a.cif", plain_cif), 1e-4),
    "ASE CIF": (ase_file("a.cif", "cif"), 1e-3),
    "POSCAR": (text_file("POSCAR", poscar), 1e-6),
    "POSCAR, Cartesian, volume given": (text_file("any name", cartesian), 1e-6),
    "POSCAR of ASE": (ase_file("a.vasp", "vasp"), 1e-6),
    "extended XYZ": (ase_file("a.extxyz", "extxyz"), 1e-6),
    "own XYZ": (own_xyz, 1e-6),
    "pymatgen JSON": (text_file("a.json", lambda s: json.dumps(s.as_dict())), 1e-9),
    "OPTIMADE": (text_file("a.json", optimade), 1e-9),
    "ASE JSON": (ase_file("b.json", "json"), 1e-9),
    "ASE database": (database, 1e-9),
    "XSF": (ase_file("a.xsf", "xsf"), 1e-6),
    "FHI-aims": (ase_file("geometry.in", "aims"), 1e-6),
    "CASTEP": (ase_file("a.cell", "castep-cell"), 1e-5),
    "Quantum ESPRESSO": (ase_file("a.pwi", "espresso-in"), 1e-6),
    "gzip": (text_file("a.vasp.gz", lambda s: gzip.compress(poscar(s).encode())), 1e-6),
    "bzip2": (text_file("POSCAR.bz2", lambda s: bz2.compress(poscar(s).encode())), 1e-6),
    "xz": (text_file("a.vasp.xz", lambda s: lzma.compress(poscar(s).encode())), 1e-6),
    "zip": (archive, 1e-6),
}  # fmt: skip
CONVENTIONAL: dict[str, Callable[[Structure, Path], Path]] = {
    "pymatgen CIF": text_file("a.cif", lambda s: str(CifWriter(s, symprec=0.01))),
    "pymatgen CIF without operations": text_file(
        "a.cif", lambda s: without_operations(str(CifWriter(s, symprec=0.01)))
    ),
    "own CIF": own_cif,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_same_cell(writer: str, tmp_path: Path) -> None:
    write, tolerance = WRITERS[writer]
    for k, entry in enumerate(LIBRARY):
        structure = prototype(entry)
        folder = tmp_path / str(k)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = write(structure, folder)
        (record,) = read_records(path)
        assert same_atoms(read(record).cell, structure, tolerance), structure
        (found,) = lx.read_structures(path)
        assert len(found.cell[2]) == len(structure)


@pytest.mark.parametrize("writer", CONVENTIONAL)
def test_same_crystal(writer: str, tmp_path: Path) -> None:
    for k, entry in enumerate(LIBRARY):
        structure = prototype(entry)
        folder = tmp_path / str(k)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = CONVENTIONAL[writer](structure, folder)
        (record,) = read_records(path)
        assert same_crystal(read(record).cell, structure), structure


def test_packed(tmp_path: Path) -> None:
    structures = {str(k): prototype(entry) for k, entry in enumerate(LIBRARY)}
    (tmp_path / "all.json").write_text(
        json.dumps({name: s.as_dict() for name, s in structures.items()})
    )
    packed = prepare(tmp_path / "all.json", tmp_path / "all.lxd", workers=1)
    assert len(packed.dataset) + sum(packed.rejects.values()) == len(structures)
    found = lx.read_structures(tmp_path / "all.lxd")
    assert len(found) == len(packed.dataset) > 0.9 * len(structures)
    for one in found:
        assert same_crystal(one.cell, structures[one.id])
