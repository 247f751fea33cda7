"""Write ``langevin_xtal/symmetry/space_groups.npz``: the 230 groups in spglib's default setting.

Training and sampling need only numpy and torch, so the integer operations are shipped as a table;
``tests/test_space_groups.py`` compares every group of it with the spglib that is installed.

Run from the repository root: ``python scripts/make_space_groups.py``
"""

from pathlib import Path

import numpy as np
import spglib

TARGET = Path(__file__).parents[1] / "langevin_xtal" / "symmetry" / "space_groups.npz"


def main() -> None:
    default: dict[int, int] = {}  # first Hall number of each type is spglib's default setting
    for hall in range(1, 531):
        default.setdefault(spglib.get_spacegroup_type(hall).number, hall)
    rotations, translations, counts, symbols = [], [], [], []
    for number in range(1, 231):
        kind = spglib.get_spacegroup_type(default[number])
        ops = spglib.get_symmetry_from_database(default[number])
        w = np.rint(ops["translations"] * 24).astype(np.int8) % 24
        assert np.allclose(w / 24, ops["translations"] % 1.0)
        rotations.append(ops["rotations"].astype(np.int8))
        translations.append(w)
        counts.append(len(w))
        symbols.append(kind.international_short)
    np.savez_compressed(
        TARGET,
        rotations=np.concatenate(rotations),
        translations24=np.concatenate(translations),
        counts=np.array(counts, dtype=np.int16),
        hall=np.array([default[n] for n in range(1, 231)], dtype=np.int16),
        symbols=np.array(symbols),
    )


if __name__ == "__main__":
    main()
