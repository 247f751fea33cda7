"""Write ``langevin_xtal/symmetry/wyckoff_letters.txt``: the letters of all Wyckoff positions.

The package orders the positions of a group by itself (``make_wyckoff_positions.py``); the letters
are those of the International Tables, as PyXtal has them. Where there are two origins PyXtal's is
choice 2: a general point of each of its positions is transformed, and located in the package's
table. The 27th position of Pmmm is ``A`` here, and alpha in the International Tables.

Run from the repository root, with PyXtal installed: ``python scripts/make_wyckoff_letters.py``
"""

from pathlib import Path

import numpy as np
from pyxtal.symmetry import Group

from langevin_xtal.symmetry.settings import settings_of_number
from langevin_xtal.symmetry.wyckoff import locate, wyckoff_positions

TARGET = Path(__file__).parents[1] / "langevin_xtal" / "symmetry" / "wyckoff_letters.txt"
GENERIC = np.array([0.1234, 0.2718, 0.3217])
CELL = 50.0 * np.eye(3)


def letters(number: int) -> str:
    """One letter for each of the package's positions, in its order."""
    settings = settings_of_number(number)
    setting = next((s for s in settings if s.choice.startswith("2")), settings[0])
    matrix, shift = setting.change
    found = {}
    for position in Group(number):
        point = matrix @ position.ops[0].operate(GENERIC) + shift
        own = locate(number, point, CELL)
        if own.index in found or own.multiplicity != position.multiplicity:
            raise SystemExit(f"group {number}: {position.letter} is not a position of its own")
        found[own.index] = position.letter
    return "".join(found[k] for k in range(len(wyckoff_positions(number))))


def main() -> None:
    TARGET.write_text("".join(f"{letters(n)}\n" for n in range(1, 231)), encoding="ascii")


if __name__ == "__main__":
    main()
