"""Write ``langevin_xtal/symmetry/wyckoff_positions.npz``: the Wyckoff positions of all groups.

Every Wyckoff position is a conjugacy class of fixed spaces (points, lines, planes, everything),
and each of those passes through a point of the grid of 24ths. So, for each group: take the grid
points that some operation fixes, the fixed space of each such operation through them, and that of
all of them together; find the operations that fix a generic point of it; merge what the group maps
onto one another.

The International Tables list 1731 positions for the 230 groups; the script insists on that.

Run from the repository root: ``python scripts/make_wyckoff_positions.py`` (a few minutes)
"""

import itertools
from pathlib import Path

import numpy as np

from langevin_xtal.symmetry.groups import SpaceGroup

TARGET = Path(__file__).parents[1] / "langevin_xtal" / "symmetry" / "wyckoff_positions.npz"
GRID = 24
SMALL = np.array([0.00127, 0.00211, 0.00173])  # a generic direction, shorter than any grid step
BOX = np.array(list(itertools.product(range(-2, 3), repeat=3)))
TOTAL = 1731


def fixed_by(point: np.ndarray, group: SpaceGroup) -> np.ndarray:
    """Operations that leave a point where it is, up to a lattice vector."""
    delta = point @ np.swapaxes(group.rotations, 1, 2) + group.translations - point
    return np.flatnonzero(np.abs(delta - np.rint(delta)).max(axis=1) < 1e-9)


def same_space(base: np.ndarray, projector: np.ndarray, point: np.ndarray) -> bool:
    """Whether ``point`` lies in base + range(projector), up to a lattice vector."""
    delta = point - base
    delta = delta - np.floor(delta) - BOX
    return bool((np.abs(delta - delta @ projector.T).max(axis=1) < 1e-9).any())


def positions(group: SpaceGroup) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(multiplicity, base point, projector) of each position, most special first."""
    rotations, translations = group.rotations, group.translations
    grid = np.stack(np.meshgrid(*[np.arange(GRID)] * 3, indexing="ij"), -1).reshape(-1, 3) / GRID
    count = np.zeros(len(grid), dtype=int)
    for w, t in zip(rotations, translations, strict=True):
        delta = grid @ w.T + t - grid
        count += np.abs(delta - np.rint(delta)).max(axis=1) < 1e-9
    special = grid[count > 1]
    special = special[np.lexsort((np.abs(special).sum(1), -count[count > 1]))]
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    seen: set[bytes] = set()
    for p in special:
        key = np.rint(p * GRID).astype(np.int8).tobytes()
        if key in seen:
            continue
        images = p @ np.swapaxes(rotations, 1, 2) + translations
        seen |= {
            k.tobytes() for k in (np.rint(images * GRID).astype(np.int64) % GRID).astype(np.int8)
        }
        through = fixed_by(p, group)
        spaces = [
            np.mean([np.linalg.matrix_power(rotations[h], k) for k in range(12)], axis=0)
            for h in through
        ]
        for space in [rotations[through].mean(axis=0), *spaces]:
            generic = p + space @ SMALL
            stay = fixed_by(generic, group)
            projector = rotations[stay].mean(axis=0)
            if len(stay) == 1 or any(
                m * len(stay) == group.order and equivalent(group, b, f, generic, projector)
                for m, b, f in found
            ):
                continue
            found.append((group.order // len(stay), p, projector))
    found.append((group.order, np.zeros(3), np.eye(3)))
    return sorted(found, key=lambda w: (w[0], np.trace(w[2]), *np.rint(w[1] * GRID)))


def equivalent(
    group: SpaceGroup,
    base: np.ndarray,
    projector: np.ndarray,
    other: np.ndarray,
    other_projector: np.ndarray,
) -> bool:
    """Whether some operation maps the space through ``other`` onto base + range(projector)."""
    for w, t in zip(group.rotations, group.translations, strict=True):
        turned = w @ other_projector @ np.linalg.inv(w)
        if np.abs(turned - projector).max() < 1e-9 and same_space(base, projector, w @ other + t):
            return True
    return False


def main() -> None:
    counts, multiplicity, base, projector = [], [], [], []
    for number in range(1, 231):
        rows = positions(SpaceGroup(number))
        counts.append(len(rows))
        multiplicity += [m for m, _, _ in rows]
        base += [np.rint(b * GRID) for _, b, _ in rows]
        projector += [np.rint(f * 12) for _, _, f in rows]
        assert all(np.abs(np.rint(f * 12) - f * 12).max() < 1e-9 for _, _, f in rows)
        print(number, len(rows), flush=True)
    print(sum(counts), "positions")
    if sum(counts) != TOTAL:
        raise SystemExit(f"expected {TOTAL}")
    np.savez_compressed(
        TARGET,
        counts=np.array(counts, dtype=np.int16),
        multiplicity=np.array(multiplicity, dtype=np.int16),
        base24=np.array(base, dtype=np.int8),
        projector12=np.array(projector, dtype=np.int8),
    )


if __name__ == "__main__":
    main()
