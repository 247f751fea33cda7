"""X-rays: wavelengths of tubes, and atomic scattering factors.

Both tables are pymatgen's, read from the installed package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import InputError

SHORTEST, LONGEST = 0.1, 5.0
"""Wavelengths [Å] that are taken."""


@dataclass(frozen=True)
class Radiation:
    """Lines of X-rays with their shares of the intensity."""

    lines: tuple[tuple[float, float], ...]  #: wavelength [Å] and share, the strongest first
    name: str = ""

    @property
    def wavelength(self) -> float:
        """Of the strongest line [Å]."""
        return self.lines[0][0]

    def __str__(self) -> str:
        text = " and ".join(f"{length:.5f}" for length, _ in self.lines)
        return f"{self.name} ({text} Å)" if self.name else f"{text} Å"


def radiation(wavelength: str | float) -> Radiation:
    """A tube such as ``"CuKa"`` (both lines) or ``"CuKa1"``, or a wavelength [Å].

    Raises
    ------
    InputError
        For an unknown tube, or a wavelength outside 0.1 to 5 Å.
    """
    from pymatgen.analysis.diffraction.xrd import WAVELENGTHS

    text = str(wavelength).strip()
    known = {name.lower(): name for name in WAVELENGTHS}
    name = known.get(re.sub(r"[\s_-]", "", text).lower().replace("α", "a").replace("β", "b"), "")
    if name.endswith("Ka"):
        pair = WAVELENGTHS[f"{name}1"], WAVELENGTHS[f"{name}2"]
        return Radiation(((pair[0], 2 / 3), (pair[1], 1 / 3)), name)
    if name:
        return Radiation(((WAVELENGTHS[name], 1.0),), name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not SHORTEST <= value <= LONGEST:
        tubes = ", ".join(WAVELENGTHS)
        raise InputError(
            f"wavelength {text!r} is not known; give {SHORTEST:g} to {LONGEST:g} Å or one of "
            f"{tubes}"
        )
    return Radiation(((value, 1.0),))


@cache
def _table() -> dict[str, list[list[float]]]:
    source = resources.files("pymatgen.analysis.diffraction")
    text = source.joinpath("atomic_scattering_params.json").read_text(encoding="utf-8")
    found: dict[str, list[list[float]]] = json.loads(text)
    return found


def scattering_parameters(numbers: Sequence[int]) -> NDArray[np.float64]:
    """(A, 4, 2) parameters a [Å] and b [Å²] of neutral atoms with these atomic numbers.

    The scattering factor at s = sin θ / λ is Z − 41.78214 s² Σ a exp(−b s²).

    Raises
    ------
    InputError
        For an element that the table lacks.
    """
    lacking = sorted({SYMBOLS[z] for z in numbers if SYMBOLS[z] not in _table()})
    if lacking:
        raise InputError(
            f"no X-ray scattering factor is known of {', '.join(lacking)}; patterns of other "
            "elements can be compared"
        )
    rows = [_table()[SYMBOLS[z]] for z in numbers]
    padded = [row + [[0.0, 0.0]] * (4 - len(row)) for row in rows]
    return np.array(padded).reshape(-1, 4, 2)
