"""Valid files of every format, seeded damage to them, and what reading them comes to."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter
from pymatgen.io.vasp import Poscar

import langevin_xtal as lx
from langevin_xtal.errors import LangevinXtalError
from langevin_xtal.structures.files import decoded
from langevin_xtal.structures.record import ReadStructure

FORMATS = {
    "cif": ".cif",
    "cif without operations": ".cif",
    "mcif": ".mcif",
    "poscar": ".vasp",
    "xyz": ".extxyz",
    "csv": ".csv",
    "pymatgen": ".json",
    "optimade": ".json",
    "npz": ".npz",
    "database": ".db",
    "gzip": ".cif.gz",
    "zip": ".zip",
    "xsf": ".xsf",
    "castep": ".cell",
    "espresso": ".pwi",
    "aims": ".in",
    "lxd": ".lxd",
}
"""Format to suffix."""
_WORDS = [b"0", b"-1", b"1e300", b"nan", b"inf", b"?", b".", b"'", b'"', b";", b"\n;", b"data_",
          b"loop_", b"_atom_site_label", b"999999999", b"1/0", b"x,y,z", b"\x00", b"\xff\xfe",
          b"\xe2\x82\x82", b"\r", b"\t", b"{", b"]", b"[[[[", b"null", b"Xx", b"0.333",
          b"1e-12"]  # fmt: skip


def crystals() -> list[Structure]:
    """Rutile, spinel and a monoclinic crystal."""
    rutile = Structure.from_spacegroup(
        136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    spinel = Structure.from_spacegroup(
        216, Lattice.cubic(5.41), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    )
    zirconia = Structure.from_spacegroup(
        14,
        Lattice.monoclinic(5.1505, 5.2116, 5.3173, 99.23),
        ["Zr", "O", "O"],
        [[0.2754, 0.0395, 0.2083], [0.07, 0.3317, 0.3447], [0.4496, 0.7569, 0.4792]],
    )
    return [rutile, spinel, zirconia]


def seeds(name: str, folder: Path) -> list[bytes]:
    """Contents of valid files of a format."""
    return [_valid(name, structure, folder) for structure in crystals()]


def _valid(name: str, structure: Structure, folder: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cif = str(CifWriter(structure, symprec=0.01))
        if name in ("cif", "gzip"):
            return gzip.compress(cif.encode()) if name == "gzip" else cif.encode()
        if name == "cif without operations":
            begin, end = cif.index("loop_\n _symm"), cif.index("loop_\n _atom")
            return (cif[:begin] + cif[end:]).encode()
        if name == "mcif":
            made = structure.copy()
            made.add_site_property("magmom", [1.0] * len(made))
            return str(CifWriter(made, write_magmoms=True)).encode()
        if name == "poscar":
            return Poscar(structure).get_str().encode()
        if name == "csv":
            quoted = cif.replace('"', '""')
            return f'id,cif,gap\none,"{quoted}",1.5\ntwo,"{quoted}",2\n'.encode()
        if name == "pymatgen":
            return json.dumps([structure.as_dict()]).encode()
        if name == "optimade":
            symbols = [site.specie.symbol for site in structure]
            attributes = {
                "lattice_vectors": structure.lattice.matrix.tolist(),
                "cartesian_site_positions": structure.cart_coords.tolist(),
                "species_at_sites": symbols,
                "species": [{"name": s, "chemical_symbols": [s], "concentration": [1.0]}
                            for s in sorted(set(symbols))],
            }  # fmt: skip
            return json.dumps({"data": [{"id": "x", "attributes": attributes}]}).encode()
        if name == "npz":
            stream = io.BytesIO()
            lattice = structure.lattice
            np.savez(stream, id=np.array(["x"]), na=[len(structure)],
                     lat=[[*lattice.abc, *lattice.angles]], Z=structure.atomic_numbers,
                     F=structure.frac_coords)  # fmt: skip
            return stream.getvalue()
        if name == "lxd":
            from langevin_xtal.dataset.prepare import prepare

            (folder / "seed.json").write_text(json.dumps([structure.as_dict()]))
            prepare(folder / "seed.json", folder / "seed.lxd", workers=1)
            return (folder / "seed.lxd").read_bytes()
        atoms = structure.to_ase_atoms()
        if name == "zip":
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.cif", cif)
                archive.writestr("b/POSCAR", Poscar(structure).get_str())
            return stream.getvalue()
        if name == "database":
            path = folder / "seed.db"
            path.unlink(missing_ok=True)
            with ase.db.connect(path) as database:
                database.write(atoms, gap=1.5)
                database.write(bulk("NaCl", "rocksalt", 5.6))
            return path.read_bytes()
        kinds = {"xyz": "extxyz", "xsf": "xsf", "castep": "castep-cell",
                 "espresso": "espresso-in", "aims": "aims"}  # fmt: skip
        more = {}
        if name == "espresso":
            more["pseudopotentials"] = {s: f"{s}.upf" for s in set(atoms.symbols)}
        path = folder / "seed"
        ase.io.write(path, atoms, format=kinds[name], **more)
        return path.read_bytes() * (2 if name == "xyz" else 1)


def mutate(
    name: str, originals: list[bytes], number: int, seed: int, folder: Path
) -> tuple[Path, bytes]:
    """A file with one or two damages, and its contents."""
    rng = np.random.default_rng([seed, number])
    data = originals[int(rng.integers(len(originals)))]
    for _ in range(int(rng.integers(1, 3))):
        data = _damaged(data, rng)
    stem = "geometry" if name == "aims" else "a"
    path = folder / f"{stem}{FORMATS[name]}"
    path.write_bytes(data)
    return path, data


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One change: of a byte, a word, a line, a number, the encoding, or the length."""
    if not data:
        return b"x"
    kind = int(rng.choice(9, p=[0.2, 0.16, 0.16, 0.03, 0.06, 0.06, 0.06, 0.24, 0.03]))
    at = int(rng.integers(len(data)))
    if kind == 0:
        return data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + _WORDS[int(rng.integers(len(_WORDS)))] + data[at:]
    if kind == 2:
        return data[:at] + data[at + int(rng.integers(1, 20)) :]
    if kind == 3:
        return data[:at]
    lines = data.split(b"\n")
    line = int(rng.integers(len(lines)))
    if kind == 4:
        del lines[line]
    elif kind == 5:
        lines.insert(line, lines[int(rng.integers(len(lines)))])
    elif kind == 6:
        other = int(rng.integers(len(lines)))
        lines[line], lines[other] = lines[other], lines[line]
    elif kind == 7:
        words = lines[line].split(b" ")
        words[int(rng.integers(len(words)))] = _WORDS[int(rng.integers(len(_WORDS)))]
        lines[line] = b" ".join(words)
    else:
        coding = ("utf-16", "latin-1", "utf-8-sig")[int(rng.integers(3))]
        return data.decode("latin-1").encode(coding)
    return b"\n".join(lines)


def outcome(path: Path, compare: bool = False) -> tuple[str, str]:
    """What reading a file comes to, and a detail.

    ``"read"``, ``"partly"`` or ``"refused"``; ``"odd message"`` where a reason is no sentence; and
    with ``compare``, ``"another crystal"`` where no other reader makes the same of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = lx.read_structures(path)
        except LangevinXtalError as error:
            return _judged("refused", [str(error)])
    reasons = [*found.left_out.values(), *found.passed_over.values()]
    for one in found:
        lattice, frac, numbers = one.cell
        if not (np.isfinite(lattice).all() and np.isfinite(frac).all() and len(numbers)):
            return "odd message", f"a cell that is none: {one}"
    kind = "read" if not found.left_out else "partly" if len(found) else "refused"
    if compare and path.suffix in (".cif", ".vasp"):
        for one in found:
            if not _agrees(path, one):
                return "another crystal", f"{one}; notes {one.notes}"
    return _judged(kind, reasons)


def _agrees(path: Path, one: ReadStructure) -> bool:
    """Whether gemmi, pymatgen or ASE makes the same atoms of a file, or they are those of the
    undamaged one, which others may be unable to find."""
    lattice, frac, numbers = one.cell
    plain = path.with_name(f"plain{path.suffix}")  # the others know UTF-8 only
    plain.write_text(decoded(path.read_bytes()), encoding="utf-8", errors="replace")
    for reader in (_by_gemmi, _by_pymatgen, _by_ase, *_UNDAMAGED):
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                cell, points, theirs = reader(plain)
        except Exception:
            continue
        if not len(points) or not np.allclose(
            lattice @ lattice.T, cell @ cell.T, rtol=1e-3, atol=1e-2
        ):
            continue
        delta = frac[:, None] - points
        delta -= np.rint(delta)
        near = (np.linalg.norm(delta @ lattice, axis=2) < 0.08) & (numbers[:, None] == theirs)
        if near.any(axis=0).all() and near.any(axis=1).all():
            return True
    return False


def _undamaged(structure: Structure) -> Callable[[Path], tuple[Any, Any, Any]]:
    numbers = np.array(structure.atomic_numbers)
    return lambda path: (structure.lattice.matrix, structure.frac_coords, numbers)


def _by_gemmi(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import gemmi

    small = gemmi.make_small_structure_from_block(gemmi.cif.read_file(str(path))[0])
    sites = small.get_all_unit_cell_sites()
    rows = np.array(small.cell.orth.mat.tolist()).T
    points = np.array([site.fract.tolist() for site in sites])
    return rows, points, np.array([site.element.atomic_number for site in sites])


def _by_pymatgen(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if path.suffix == ".cif":
        (made,) = CifParser(path).parse_structures(primitive=False)
    else:
        made = Poscar.from_str(path.read_text()).structure
    return made.lattice.matrix, made.frac_coords, np.array(made.atomic_numbers)


def _by_ase(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    atoms = ase.io.read(path, format="cif" if path.suffix == ".cif" else "vasp")
    return np.array(atoms.cell), atoms.get_scaled_positions(wrap=False), atoms.numbers


def _judged(kind: str, reasons: list[str]) -> tuple[str, str]:
    for reason in reasons:
        if not reason or "\n" in reason or "unexpected failure" in reason or len(reason) > 700:
            return "odd message", reason
    return kind, reasons[0] if reasons else ""


_UNDAMAGED = [_undamaged(structure) for structure in crystals()]
