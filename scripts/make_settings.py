"""Write ``langevin_xtal/symmetry/settings.npz``: spglib's 530 settings of the 230 space groups.

Symbols and operations are spglib's; names from before 1992 (Cmca for Cmce) are gemmi's, matched by
the operations. For each setting the table holds the change of coordinates to the setting that the
package uses, by way of gemmi's reference settings, with a shift of the origin that keeps the group
where spglib's letters of Wyckoff positions ask for one. It is checked on the operations.
``tests/laws/test_settings.py`` compares the table with the spglib and gemmi that are installed.

Run from the repository root: ``python scripts/make_settings.py``
"""

from pathlib import Path

import gemmi
import numpy as np
import spglib

from langevin_xtal.symmetry.wyckoff import locate, shift_vectors, wyckoff_positions

TARGET = Path(__file__).parents[1] / "langevin_xtal" / "symmetry" / "settings.npz"
GENERAL = np.array([[0.1234, 0.2071, 0.3389], [0.0411, 0.4523, 0.1717]])
SMALL = np.array([0.0127, 0.0211, 0.0173])


def operations(hall: int) -> tuple[np.ndarray, np.ndarray]:
    """(G, 3, 3) rotations and (G, 3) translations in units of 1/24."""
    found = spglib.get_symmetry_from_database(hall)
    w = np.rint(found["translations"] * 24).astype(int) % 24
    assert np.allclose(w / 24, found["translations"] % 1.0)
    return found["rotations"].astype(int), w


def as_set(rotations: np.ndarray, w: np.ndarray) -> frozenset:
    return frozenset((*r.ravel().tolist(), *t.tolist()) for r, t in zip(rotations, w, strict=True))


def old_names() -> dict[frozenset, list[str]]:
    """Names of gemmi's table by the operations they stand for."""
    names: dict[frozenset, list[str]] = {}
    for group in gemmi.spacegroup_table():
        pairs = [(np.array(op.rot) // 24, np.array(op.tran) % 24) for op in group.operations()]
        key = as_set(*(np.array(x) for x in zip(*pairs, strict=True)))
        names.setdefault(key, []).append(group.hm)
    return names


def bases() -> dict[frozenset, tuple[np.ndarray, np.ndarray]]:
    """By the operations: A and a with x = A y + a for coordinates y of gemmi's reference setting.

    Where there are several, most are those under which Wyckoff positions keep their letters.
    """
    found: dict[frozenset, tuple[np.ndarray, np.ndarray]] = {}
    for group in gemmi.spacegroup_table():
        pairs = [(np.array(op.rot) // 24, np.array(op.tran) % 24) for op in group.operations()]
        key = as_set(*(np.array(x) for x in zip(*pairs, strict=True)))
        basis = np.array(group.basisop.rot) / 24, np.array(group.basisop.tran) / 24
        found.setdefault(key, basis)
    return found


def change_to(
    hall: int, target: int, basis: dict[frozenset, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) P and (3,) p with x' = P x + p, from a setting to another of the same type."""
    rotations, w = operations(hall)
    own, ours = basis[as_set(rotations, w)], basis[as_set(*operations(target))]
    matrix = ours[0] @ np.linalg.inv(own[0])
    shift = (ours[1] - matrix @ own[1]) % 1.0
    assert np.allclose(matrix * 6, np.rint(matrix * 6), atol=1e-6)
    assert np.allclose(shift * 24, np.rint(shift * 24), atol=1e-6)
    turned = matrix @ rotations @ np.linalg.inv(matrix)
    moved = ((w / 24) @ matrix.T + shift - turned @ shift) * 24
    assert np.allclose(turned, np.rint(turned), atol=1e-6)
    assert np.allclose(moved, np.rint(moved), atol=1e-6)
    got = as_set(np.rint(turned).astype(int), np.rint(moved).astype(int) % 24)
    assert got <= as_set(*operations(target)), (hall, target)
    return matrix, np.rint(shift * 24) % 24 / 24


def letters(hall: int, number: int, matrix: np.ndarray, shift: np.ndarray) -> dict[int, str]:
    """spglib's letters of a setting, by the package's index of the position."""
    rotations, w = operations(hall)
    positions = wyckoff_positions(number)
    mean = sum(r.T @ np.array([[40.0, 3, 5], [3, 70, 7], [5, 7, 100]]) @ r for r in rotations)
    lattice = np.linalg.cholesky(mean / len(rotations))
    points = [p.base + p.projector @ SMALL for p in positions]
    points = [*GENERAL, *(np.linalg.solve(matrix, x - shift) for x in points)]
    atoms: list[np.ndarray] = []
    site: list[int] = []
    for k, x in enumerate(points):
        own: list[np.ndarray] = []
        for y in (x @ np.swapaxes(rotations, 1, 2) + w / 24) % 1.0:
            if all(np.abs(y - z - np.rint(y - z)).max() > 1e-6 for z in own):
                own.append(y)
        atoms, site = atoms + own, site + [k] * len(own)
    cell = lattice, np.array(atoms), np.array(site) + 1
    # spglib may see the crystal from another origin: its letters are those of the points there
    seen = spglib.get_symmetry_dataset(cell, symprec=1e-4, hall_number=hall)
    found = {}
    for k in range(2, len(points)):
        row = site.index(k)
        there = seen.transformation_matrix @ atoms[row] + seen.origin_shift
        own_place = locate(number, matrix @ there + shift, 50.0 * np.eye(3))
        found[own_place.index] = str(seen.wyckoffs[row])
    return found


def keeping_letters(
    hall: int, target: int, matrix: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A change under which letters stay, if a shift of the origin makes one; else the same."""
    number = spglib.get_spacegroup_type(hall).number
    wanted = letters(target, number, np.eye(3), np.zeros(3))
    now = letters(hall, number, matrix, shift)
    for extra, label in zip(*shift_vectors(number), strict=True):
        if {int(label[k]): letter for k, letter in now.items()} == wanted:
            return matrix, np.rint((shift + extra) * 24) % 24 / 24
    print(f"Hall number {hall}: letters change")
    return matrix, shift


def main() -> None:
    default: dict[int, int] = {}
    for hall in range(1, 531):
        default.setdefault(spglib.get_spacegroup_type(hall).number, hall)
    names, basis = old_names(), bases()
    columns: dict[str, list] = {}
    rotations, translations, counts = [], [], []
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        r, w = operations(hall)
        own = kind.international.split("=")[-1].strip()
        same = [n for n in names[as_set(r, w)] if _plain(n) != _plain(own)]
        change, shift = change_to(hall, default[kind.number], basis)
        change, shift = keeping_letters(hall, default[kind.number], change, shift)
        row = {
            "number": kind.number,
            "choice": kind.choice,
            "hall": kind.hall_symbol,
            "type_symbol": kind.international_short,
            "symbol": own,
            "full": kind.international_full,
            "schoenflies": kind.schoenflies,
            "others": "|".join(same),
            "change": np.rint(change * 6).astype(np.int8),
            "shift": np.rint(shift * 24).astype(np.int8),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        rotations.append(r.astype(np.int8))
        translations.append(w.astype(np.int8))
        counts.append(len(w))
    columns["number"] = np.array(columns["number"], dtype=np.int16)
    np.savez_compressed(
        TARGET,
        rotations=np.concatenate(rotations),
        translations24=np.concatenate(translations),
        counts=np.array(counts, dtype=np.int16),
        **{name: np.array(values) for name, values in columns.items()},
    )


def _plain(text: str) -> str:
    return text.replace(" ", "").replace("_", "").lower()


if __name__ == "__main__":
    main()
