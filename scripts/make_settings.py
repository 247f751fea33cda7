"""Write ``langevin_xtal/symmetry/settings.npz``: spglib's 530 settings of the 230 space groups.

Symbols and operations are spglib's; names from before 1992 (Cmca for Cmce) are gemmi's, matched by
the operations. For each setting the table holds the change of coordinates to the setting that the
package uses, found by spglib on a crystal without further symmetry and checked on the operations.
``tests/laws/test_settings.py`` compares the table with the spglib and gemmi that are installed.

Run from the repository root: ``python scripts/make_settings.py``
"""

from pathlib import Path

import gemmi
import numpy as np
import spglib

TARGET = Path(__file__).parents[1] / "langevin_xtal" / "symmetry" / "settings.npz"
GENERAL = np.array([[0.1234, 0.2071, 0.3389], [0.0411, 0.4523, 0.1717]])


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


def change_to(hall: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) P and (3,) p with x' = P x + p, from a setting to another of the same type."""
    rotations, w = operations(hall)
    mean = sum(r.T @ np.array([[40.0, 3, 5], [3, 70, 7], [5, 7, 100]]) @ r for r in rotations)
    lattice = np.linalg.cholesky(mean / len(rotations))  # rows; its metric is invariant
    points = [(x @ np.swapaxes(rotations, 1, 2) + w / 24) % 1.0 for x in GENERAL]
    cell = (lattice, np.concatenate(points), np.repeat([1, 2], len(rotations)))
    found = spglib.get_symmetry_dataset(cell, symprec=1e-4, hall_number=target)
    assert found.number == spglib.get_spacegroup_type(hall).number
    matrix, shift = found.transformation_matrix, found.origin_shift
    exact = np.rint(matrix * 6) / 6
    assert np.allclose(matrix, exact, atol=1e-6)
    inverse = np.linalg.inv(exact)
    mine, theirs = as_set(rotations, w), as_set(*operations(target))
    # the origin is free along polar axes: the nearest multiple of 1/24 is taken there
    for near in _near(shift * 24):
        there = []
        for r, t in zip(rotations, w / 24, strict=True):
            turned = exact @ r @ inverse
            moved = (exact @ t + near / 24 - turned @ near / 24) * 24
            there.append((np.rint(turned).astype(int), np.rint(moved).astype(int) % 24, moved))
        if not all(np.allclose(m, np.rint(m), atol=1e-6) for _, _, m in there):
            continue
        got = as_set(np.array([t[0] for t in there]), np.array([t[1] for t in there]))
        if (
            got <= theirs
            and len(got) * round(1 / abs(np.linalg.det(exact)), 6) <= len(theirs) + 1e-6
        ):
            return exact, near / 24
    raise AssertionError(f"no change from {hall} to {target}: {matrix} {shift} {len(mine)}")


def _near(shift24: np.ndarray):
    """Origins to try, in units of 1/24: the rounded one first, then those with zeros."""
    base = np.rint(shift24) % 24
    yield base
    for mask in np.ndindex(2, 2, 2):
        yield np.where(np.array(mask, bool), 0, base)


def main() -> None:
    default: dict[int, int] = {}
    for hall in range(1, 531):
        default.setdefault(spglib.get_spacegroup_type(hall).number, hall)
    names = old_names()
    columns: dict[str, list] = {}
    rotations, translations, counts = [], [], []
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        r, w = operations(hall)
        own = kind.international.split("=")[-1].strip()
        same = [n for n in names[as_set(r, w)] if _plain(n) != _plain(own)]
        change, shift = change_to(hall, default[kind.number])
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
