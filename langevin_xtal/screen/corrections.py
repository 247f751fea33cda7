"""The Materials Project's corrections of 2020, for potentials that predict uncorrected energies.

A. Wang et al., Scientific Reports 11, 15496 (2021), as pymatgen has them: anions (oxide, peroxide
and superoxide, sulphide, halides, …) where they are anions, and the elements whose PBE+U energies
are to be mixed with PBE ones. Which calculations of the Materials Project are PBE+U follows from
the composition: oxides and fluorides of Co, Cr, Fe, Mn, Mo, Ni, V and W.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.pymatgen import to_structure

MIXED_ANIONS = ("O", "F")
"""With these, as the most electronegative element, the Materials Project applies PBE+U."""


@cache
def _tools() -> tuple[Any, dict[str, dict[str, float]]]:
    """pymatgen's corrections and U values by anion; read when needed: it takes seconds."""
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.io.vasp.sets import MPRelaxSet

    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    return scheme, MPRelaxSet.CONFIG["INCAR"]["LDAUU"]


def mp2020_correction(cell: Cell) -> float:
    """What the corrections add to the energy of a crystal [eV/atom].

    NaN where the scheme has no corrections for it. Oxides differ from peroxides and superoxides
    by the distances between their oxygen atoms.

    Parameters
    ----------
    cell
        (lattice rows [Å], fractional coordinates, atomic numbers).
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    scheme, by_anion = _tools()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = to_structure(cell)
        symbols = {element.symbol for element in structure.composition.elements}
        anion = max(structure.composition.elements, key=lambda e: _pull(e)).symbol
        values = by_anion.get(anion, {}) if anion in MIXED_ANIONS and len(symbols) > 1 else {}
        mixed = {symbol: values[symbol] for symbol in symbols if symbol in values}
        hubbards = {s: float(values.get(s, 0.0)) for s in symbols} if mixed else {}
        entry = ComputedStructureEntry(
            structure,
            0.0,
            parameters={"run_type": "GGA+U" if mixed else "GGA", "hubbards": hubbards},
        )
        done = scheme.process_entries([entry], inplace=False, verbose=False)
    return float(done[0].correction) / len(structure) if done else math.nan


def _pull(element: Any) -> float:
    """Electronegativity; noble gases without one come last."""
    value = float(element.X)
    return -1.0 if math.isnan(value) else value
