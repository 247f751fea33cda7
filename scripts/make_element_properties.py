"""Write langevin_xtal/crystal/element_properties.csv from the tables of pymatgen and ASE.

Needs the ``evaluate`` extra. Columns, empty where the source has no value: Mendeleev number
(Villars et al., J. Alloys Compd. 367, 167, 2004), Pauling electronegativity, atomic radius
(Slater 1964) [Å] and mean ionic radius (Shannon 1976) [Å], all by pymatgen; covalent radius
(Cordero et al. 2008) [Å] by ASE; electrons in the outermost s and p, the next d and the third f
shell.
"""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

from ase.data import covalent_radii
from pymatgen.core import Element

from langevin_xtal.crystal.elements import SYMBOLS

OUT = Path(__file__).parents[1] / "langevin_xtal" / "crystal" / "element_properties.csv"
NAMES = ("mendeleev", "electronegativity", "atomic_radius", "ionic_radius", "covalent_radius")
COLUMNS = ("number", "symbol", *NAMES, "s", "p", "d", "f")
UNKNOWN_COVALENT = 0.2  # what ASE writes where Cordero et al. give nothing


def shells(element: Element) -> list[int]:
    """Electrons in the outermost s and p, the next inner d and the third f shell.

    Beyond rutherfordium pymatgen has none: those of the element above in the table, 32 before.
    """
    known = element if "Electronic structure" in element.data else Element.from_Z(element.Z - 32)
    held = {(n, kind): count for n, kind, count in known.full_electronic_structure}
    outer = max(n for n, _ in held)
    keys = [(outer, "s"), (outer, "p"), (outer - 1, "d"), (outer - 2, "f")]
    return [held.get(key, 0) for key in keys]


def text(value: object) -> str:
    """Four digits, or nothing where there is no number."""
    number = float(value) if value is not None and value != "no data" else math.nan  # type: ignore[arg-type]
    return f"{number:.4g}" if math.isfinite(number) else ""


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")  # one for every value that pymatgen lacks
    with OUT.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number in range(1, len(SYMBOLS)):
            element = Element.from_Z(number)
            ionic = float(element.average_ionic_radius) or None
            covalent = float(covalent_radii[number])
            numbers = [
                element.mendeleev_no,
                element.X,
                element.atomic_radius,
                ionic,
                covalent if covalent != UNKNOWN_COVALENT else None,
            ]
            writer.writerow([number, SYMBOLS[number], *map(text, numbers), *shells(element)])


if __name__ == "__main__":
    main()
