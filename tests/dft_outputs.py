"""Small outputs of DFT codes as the codes write them, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure


def _vectors(name: str, rows: Any) -> str:
    lines = "".join(
        f"   <v> {' '.join(f'{x:.8f}' for x in row)} </v>\n" for row in np.asarray(rows)
    )
    return f'  <varray name="{name}" >\n{lines}  </varray>\n'


def _structure(structure: Structure, name: str = "") -> str:
    lattice = structure.lattice
    label = f' name="{name}"' if name else ""
    return (
        f"<structure{label} >\n <crystal>\n"
        + _vectors("basis", lattice.matrix)
        + f'  <i name="volume"> {lattice.volume:.8f} </i>\n'
        + _vectors("rec_basis", lattice.inv_matrix.T)
        + " </crystal>\n"
        + _vectors("positions", structure.frac_coords)
        + "</structure>\n"
    )


def _tag(name: str, value: Any) -> str:
    kind = "int" if isinstance(value, int) else "" if isinstance(value, float) else "string"
    text = f' type="{kind}"' if kind else ""
    return f' <i{text} name="{name}"> {value}</i>\n'


def vasprun(
    structures: Sequence[Structure],
    energies: Sequence[float],
    *,
    incar: Mapping[str, Any] | None = None,
    nelm: int = 60,
    electronic_steps: int = 8,
    nsw: int = 99,
    levels: Sequence[tuple[float, float]] = ((-1.0, 1.0), (2.5, 0.0)),
) -> str:
    """vasprun.xml of a relaxation: the start and the geometry and energy [eV] of each step.

    Parameters
    ----------
    structures
        The geometries; the first is where the run starts.
    levels
        (energy [eV], occupation) of the bands at the only k-point.
    """
    first, last = structures[0], structures[-1]
    tags = {"ENCUT": 520.0, "NELM": nelm, "NSW": nsw, "IBRION": 2, "ISIF": 3, "ISPIN": 1}
    symbols = [site.specie.symbol for site in first]
    kinds = list(dict.fromkeys(symbols))
    atoms = "".join(f"<rc><c>{s} </c><c> {kinds.index(s) + 1}</c></rc>\n" for s in symbols)
    types = "".join(
        f"<rc><c> {symbols.count(s)}</c><c>{s} </c><c> 1.0</c><c> 1.0</c>"
        f"<c> PAW_PBE {s} 01Jan2000 </c></rc>\n"
        for s in kinds
    )
    bands = "".join(f"<r> {e:.4f} {o:.4f} </r>\n" for e, o in levels)
    eigenvalues = (
        '<eigenvalues><array><dimension dim="1">band</dimension><field>eigene</field>'
        f'<field>occ</field><set><set comment="spin 1"><set comment="kpoint 1">\n{bands}'
        "</set></set></set></array></eigenvalues>\n"
    )
    steps = ""
    for k, (structure, energy) in enumerate(zip(structures, energies, strict=True)):
        values = "".join(
            f'<i name="{name}"> {energy:.8f} </i>'
            for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy")
        )
        scf = f"<scstep><energy>{values}</energy></scstep>\n" * electronic_steps
        steps += (
            f"<calculation>\n{scf}{_structure(structure)}"
            + _vectors("forces", np.zeros((len(structure), 3)))
            + _vectors("stress", np.zeros((3, 3)))
            + f"<energy>{values}</energy>\n"
            + (eigenvalues if k == len(structures) - 1 else "")
            + "</calculation>\n"
        )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator>\n'
        + _tag("program", "vasp")
        + _tag("version", "6.4.2  ")
        + "</generator>\n<incar>\n"
        + "".join(_tag(name, value) for name, value in (incar or {"ENCUT": 520.0}).items())
        + "</incar>\n<kpoints>\n"
        + '<generation param="Gamma"><v type="int" name="divisions"> 1 1 1 </v>'
        '<v name="usershift"> 0 0 0 </v></generation>\n'
        + _vectors("kpointlist", [[0, 0, 0]])
        + '  <varray name="weights" >\n   <v> 1.0 </v>\n  </varray>\n</kpoints>\n<parameters>\n'
        + "".join(_tag(name, value) for name, value in tags.items())
        + f"</parameters>\n<atominfo>\n<atoms> {len(symbols)} </atoms>\n<types> {len(kinds)} "
        f'</types>\n<array name="atoms" ><set>\n{atoms}</set></array>\n'
        f'<array name="atomtypes" ><set>\n{types}</set></array>\n</atominfo>\n'
        + _structure(first, "initialpos")
        + steps
        + _structure(last, "finalpos")
        + "</modeling>\n"
    )


def outcar(magnetisation: float) -> str:
    """The part of OUTCAR with the total magnetisation [μB]."""
    return (
        " running on    1 total cores\n"
        "   number of dos      NEDOS =    301   number of bands    NBANDS=     10\n"
        "   total plane-waves  NPLWV =   8000\n"
        "   ISPIN  =      2    spin polarized calculation?\n"
        "   IBRION =      2    ionic relax: 0-MD 1-quasi-New 2-CG\n"
        f" number of electron      16.0000000 magnetization       {magnetisation:.7f}\n"
        " General timing and accounting informations for this job:\n"
    )


def pw_out(folder: Path, structure: Structure, energy: float, *, done: bool = True) -> None:
    """``pw.out`` of a calculation at fixed geometry, by its energy [Ry]."""
    alat = structure.lattice.a / 0.529177210903
    lines = ["     Program PWSCF v.7.2 starts", ""]
    lines += [f"     lattice parameter (alat)  =    {alat:.6f}  a.u."]
    lines += [f"     celldm(1)={alat:11.6f}  celldm(2)=   0.000000  celldm(3)=   0.000000"]
    lines += [f"     number of atoms/cell      =    {len(structure)}"]
    lines += [f"     number of atomic types    =    {len(structure.composition)}"]
    lines += ["     crystal axes: (cart. coord. in units of alat)"]
    for k, row in enumerate(structure.lattice.matrix / structure.lattice.a):
        lines.append(f"               a({k + 1}) = ( {' '.join(f'{x:12.8f}' for x in row)} )  ")
    lines += [
        "",
        "   Cartesian axes",
        "",
        "     site n.     atom                  positions (alat units)",
    ]
    for k, site in enumerate(structure):
        place = " ".join(f"{x:12.8f}" for x in site.coords / structure.lattice.a)
        lines.append(
            f"     {k + 1:5d}        {site.specie.symbol:3s}    tau({k + 1:4d}) = ( {place} )"
        )
    lines += ["", "     highest occupied, lowest unoccupied level (ev):     3.1000    8.2000", ""]
    lines += [f"!    total energy              =  {energy:16.8f} Ry", ""]
    lines += ["     convergence has been achieved in   9 iterations", ""]
    lines += ["   JOB DONE."] if done else []
    (folder / "pw.out").write_text("\n".join(lines) + "\n", encoding="utf-8")
