"""CIF with symmetry: the asymmetric unit and the operations of the requested group.

Written here rather than by a library because those at hand write P1, or search the symmetry again
and change setting and origin; the file must say exactly what was sampled. Readers are tested
against pymatgen and ASE.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.symmetry.groups import SpaceGroup

_AXES = "xyz"


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


def cell_parameters(lattice: NDArray[np.float64]) -> tuple[float, ...]:
    """a, b, c [Å], α, β, γ [degrees]."""
    lengths = np.linalg.norm(lattice, axis=1)
    unit = lattice / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    return (*lengths.tolist(), *np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist())


def cif_text(candidate: Candidate) -> str:
    """The candidate as a CIF."""
    a, b, c, alpha, beta, gamma = cell_parameters(candidate.lattice)
    group = candidate.space_group
    lines = [
        f"data_{candidate.formula}_{group.number}_{candidate.index:04d}",
        f"_chemical_formula_sum '{_formula_sum(candidate)}'",
        *(f"_cell_length_{n}   {v:.6f}" for n, v in zip("abc", (a, b, c), strict=True)),
        *(
            f"_cell_angle_{n}   {v:.6f}"
            for n, v in zip(("alpha", "beta", "gamma"), (alpha, beta, gamma), strict=True)
        ),
        f"_cell_volume   {candidate.volume:.6f}",
        f"_space_group_IT_number   {group.number}",
        f"_space_group_name_H-M_alt   '{group.symbol}'",
        "",
        *_operation_lines(group),
        "",
        "loop_",
        *(
            f"_atom_site_{name}"
            for name in (
                "label",
                "type_symbol",
                "symmetry_multiplicity",
                "Wyckoff_symbol",
                "fract_x",
                "fract_y",
                "fract_z",
                "occupancy",
            )
        ),
    ]
    rows = zip(candidate.numbers, candidate.wyckoff, candidate.frac, strict=True)
    for k, (number, name, (x, y, z)) in enumerate(rows, start=1):
        symbol, m, letter = SYMBOLS[number], name[:-1], name[-1]  # '4' and 'c' of 4c
        lines.append(f"{symbol}{k} {symbol} {m} {letter} {x:.10f} {y:.10f} {z:.10f} 1")
    return "\n".join(lines) + "\n"


def _operation_lines(group: SpaceGroup) -> list[str]:
    pairs = zip(group.rotations, group.translations24, strict=True)
    texts = [f"{k} '{operation_text(w, t)}'" for k, (w, t) in enumerate(pairs, start=1)]
    return ["loop_", "_space_group_symop_id", "_space_group_symop_operation_xyz", *texts]


def _formula_sum(candidate: Candidate) -> str:
    found = np.unique(candidate.numbers[candidate.atom_site], return_counts=True)
    return " ".join(f"{SYMBOLS[z]}{n}" for z, n in zip(*found, strict=True))
