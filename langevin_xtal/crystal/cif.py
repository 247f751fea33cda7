"""CIF with symmetry: the asymmetric unit and the operations of its group.

Written here rather than by a library because those at hand write P1, or search the symmetry again
and change setting and origin; the file must say exactly what was sampled. Readers are tested
against pymatgen and ASE.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import cell_parameters
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.symmetry.groups import SpaceGroup

_AXES = "xyz"
_SITE_COLUMNS = (
    "label",
    "type_symbol",
    "symmetry_multiplicity",
    "Wyckoff_symbol",
    "fract_x",
    "fract_y",
    "fract_z",
    "occupancy",
)


def operation_text(rotation: NDArray[np.int64], translation24: NDArray[np.int64]) -> str:
    """``'-y,x-y,z+1/3'`` for an operation with its translation in units of 1/24."""
    parts = []
    for row, shift in zip(rotation, translation24, strict=True):
        text = ""
        for axis, factor in zip(_AXES, row, strict=True):
            if factor:
                text += ("+" if factor > 0 else "-") + axis
        if shift:
            divisor = int(np.gcd(int(shift), 24))
            text += f"+{shift // divisor}/{24 // divisor}"
        parts.append(text.removeprefix("+"))
    return ",".join(parts)


def cif_text(candidate: Candidate) -> str:
    """The candidate as a CIF."""
    letters = np.array([name[-1] for name in candidate.wyckoff])  # c of 4c
    name = f"{candidate.formula}_{candidate.space_group.number}_{candidate.index:04d}"
    return sites_cif(replace(candidate.unit, wyckoff=letters), name, gap="   ")


def sites_cif(unit: AsymmetricUnit, name: str, gap: str = " ") -> str:
    """The CIF of an asymmetric unit as the data block ``name``, ``gap`` before single values."""
    group = unit.space_group
    parameters = cell_parameters(unit.lattice)
    names = (*(f"length_{n}" for n in "abc"), "angle_alpha", "angle_beta", "angle_gamma")
    places = np.round(unit.frac, 10) % 1.0
    rows = zip(unit.numbers, unit.multiplicity, unit.wyckoff, places, strict=True)
    lines = [
        f"data_{name}",
        f"_chemical_formula_sum '{_formula_sum(unit)}'",
        *(f"_cell_{n}{gap}{v:.6f}" for n, v in zip(names, parameters, strict=True)),
        f"_cell_volume{gap}{unit.volume:.6f}",
        f"_space_group_IT_number{gap}{group.number}",
        f"_space_group_name_H-M_alt{gap}'{group.symbol}'",
        "",
        *_operation_lines(group),
        "",
        "loop_",
        *(f"_atom_site_{column}" for column in _SITE_COLUMNS),
    ]
    for k, (number, size, letter, (x, y, z)) in enumerate(rows, start=1):
        label = f"{SYMBOLS[number]}{k} {SYMBOLS[number]} {size} {letter or '?'}"
        lines.append(f"{label} {x:.10f} {y:.10f} {z:.10f} 1")
    return "\n".join(lines) + "\n"


def _operation_lines(group: SpaceGroup) -> list[str]:
    pairs = zip(group.rotations, group.translations24, strict=True)
    texts = [f"{k} '{operation_text(w, t)}'" for k, (w, t) in enumerate(pairs, start=1)]
    return ["loop_", "_space_group_symop_id", "_space_group_symop_operation_xyz", *texts]


def _formula_sum(unit: AsymmetricUnit) -> str:
    atoms = unit.atom_numbers.tolist()
    return " ".join(f"{SYMBOLS[z]}{atoms.count(z)}" for z in dict.fromkeys(atoms))
