"""The multigraph in numba: the algorithm of ``cpp_ext/``, for when no compiler was there.

The functions below work on one crystal after another with growing buffers. Lattice translations
within a sphere are found axis by axis from the triangular factor of the cell, seen from c, so that
none outside the sphere is visited and edges come out in the order of their shifts.
"""

from __future__ import annotations

from math import ceil, floor, pi, sqrt
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from langevin_xtal.graph.contract import (
    MARGIN,
    MAX_NEAR,
    CrystalArrays,
    GraphSettings,
    SymmetryMultigraph,
    too_many_near,
)
from langevin_xtal.symmetry.sites import IDENTICAL

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]
_Built = tuple[Reals, int, Integers, Reals, Integers, Reals, Integers]

GROWTH = 1.3
"""Growth of the search radius, as in the reference: errors depend on it."""

FLAT, INTEGERS = 4, 5  # columns of a candidate: x, y, z, distance; atom, shift, is_long_range


def build(crystals: CrystalArrays, settings: GraphSettings) -> SymmetryMultigraph:
    """The multigraph of a batch of crystals."""
    crystals.check()
    refused, count, integers, reals, degree, reach, multiplicity = _build(
        np.ascontiguousarray(crystals.lattice, dtype=np.float64),
        np.ascontiguousarray(crystals.frac, dtype=np.float64),
        np.asarray(crystals.site_start, dtype=np.int64),
        np.ascontiguousarray(crystals.rotations, dtype=np.int64),
        np.ascontiguousarray(crystals.translations, dtype=np.float64),
        np.asarray(crystals.op_start, dtype=np.int64),
        np.asarray(crystals.op_count, dtype=np.int64),
        np.unique(crystals.orbit, return_inverse=True)[1].astype(np.int64),
        float(settings.cutoff),
        int(settings.k_min),
        int(settings.k_max),
        bool(settings.all_pairs),
        float(settings.coincidence),
        float(MAX_NEAR),
    )
    if refused[0] >= 0:
        raise too_many_near(int(refused[0]), float(refused[1]), float(refused[2]))
    integers, reals = integers[:count], reals[:count]
    source, target = integers[:, 0].copy(), integers[:, 1].copy()
    return SymmetryMultigraph(
        edge_index=np.stack([source, target]),
        edge_op=integers[:, 2].copy(),
        edge_shift=integers[:, 3:6].copy(),
        edge_vec=reals[:, :3].copy(),
        edge_dist=reals[:, 3].copy(),
        edge_is_self_image=crystals.orbit[source] == crystals.orbit[target],
        edge_is_long_range=integers[:, 6] != 0,
        edge_start=np.concatenate([[0], np.cumsum(degree)]).astype(np.int64),
        site_reach=reach,
        multiplicity=multiplicity,
    )


@njit(cache=True, nogil=True)
def _grown(array: NDArray[Any], rows: int) -> NDArray[Any]:  # pragma: no cover - compiled
    """A copy with room for at least ``rows``."""
    out = np.empty((max(rows, 2 * array.shape[0]), array.shape[1]), array.dtype)
    out[: array.shape[0]] = array
    return out


@njit(cache=True, nogil=True)
def _factor(lattice: Reals, factor: Reals) -> None:  # pragma: no cover - compiled
    """Fills ``factor``: aa, ab, ac, bb, bc, cc, then volume, 1 / heights and shortest row."""
    a, b, c = lattice[0], lattice[1], lattice[2]
    face = np.empty((3, 3))
    face[0], face[1], face[2] = np.cross(b, c), np.cross(c, a), np.cross(a, b)
    volume = abs((a * face[0]).sum())
    area = np.sqrt((face * face).sum(axis=1))
    cc = sqrt((c * c).sum())
    factor[0] = volume / area[0]
    factor[1] = (a * np.cross(c, face[0])).sum() / (cc * area[0])
    factor[2] = (a * c).sum() / cc
    factor[3] = area[0] / cc
    factor[4] = (b * c).sum() / cc
    factor[5] = cc
    factor[6] = volume
    factor[7:10] = area / volume
    factor[10] = sqrt((lattice * lattice).sum(axis=1).min())


@njit(cache=True, nogil=True)
def _images(
    delta: Reals,
    lattice: Reals,
    factor: Reals,
    radius: float,
    skip: float,
    atom: int,
    count: int,
    reals: Reals,
    integers: Integers,
) -> int:  # pragma: no cover - compiled
    """Writes the images ``delta + n`` within ``radius``; the new count, which may not have fit."""
    aa, ab, ac, bb, bc, cc = factor[0], factor[1], factor[2], factor[3], factor[4], factor[5]
    # the slack keeps images at the rim that rounding would lose; the last test is the exact one
    r2 = radius * radius * (1.0 + 1e-12)
    reach_a = sqrt(r2) / aa
    for i in range(ceil(-reach_a - delta[0]), floor(reach_a - delta[0]) + 1):
        a = delta[0] + i
        rest_b = r2 - (a * aa) ** 2
        reach_b = sqrt(max(rest_b, 0.0)) / bb
        mid_b = a * ab / bb + delta[1]
        for j in range(ceil(-reach_b - mid_b), floor(reach_b - mid_b) + 1):
            b = delta[1] + j
            rest_c = rest_b - (a * ab + b * bb) ** 2
            reach_c = sqrt(max(rest_c, 0.0)) / cc
            mid_c = (a * ac + b * bc) / cc + delta[2]
            for k in range(ceil(-reach_c - mid_c), floor(reach_c - mid_c) + 1):
                c = delta[2] + k
                x = a * lattice[0, 0] + b * lattice[1, 0] + c * lattice[2, 0]
                y = a * lattice[0, 1] + b * lattice[1, 1] + c * lattice[2, 1]
                z = a * lattice[0, 2] + b * lattice[1, 2] + c * lattice[2, 2]
                distance = sqrt(x * x + y * y + z * z)
                if distance >= radius or distance < skip:
                    continue
                if count < reals.shape[0]:
                    reals[count, 0], reals[count, 1], reals[count, 2] = x, y, z
                    reals[count, 3] = distance
                    integers[count, 0] = atom
                    integers[count, 1], integers[count, 2], integers[count, 3] = i, j, k
                    integers[count, 4] = 0
                count += 1
    return count


@njit(cache=True, nogil=True)
def _search(
    first: int,
    last: int,
    atoms: Integers,
    at: Reals,
    atom_frac: Reals,
    atom_label: Integers,
    own: int,
    lattice: Reals,
    factor: Reals,
    radius: float,
    coincidence: float,
    reals: Reals,
    integers: Integers,
) -> tuple[int, Reals, Integers]:  # pragma: no cover - compiled
    """Images of ``atoms[first:last]`` within ``radius`` of ``at``; buffers grow as needed."""
    delta = np.empty(3)
    while True:
        count = 0
        for m in range(first, last):
            k = atoms[m]
            for r in range(3):
                delta[r] = atom_frac[k, r] - at[r]
            skip = coincidence if atom_label[k] == own else -1.0
            count = _images(delta, lattice, factor, radius, skip, k, count, reals, integers)
        if count <= reals.shape[0]:
            return count, reals, integers
        reals, integers = _grown(reals, count), _grown(integers, count)


@njit(cache=True, nogil=True)
def _keep_below(
    distance: float, count: int, reals: Reals, integers: Integers
) -> int:  # pragma: no cover
    kept = 0
    for k in range(count):
        if reals[k, 3] < distance:
            reals[kept], integers[kept] = reals[k], integers[k]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def _shell_count(ordered: Reals, k_min: int, k_max: int, over: bool) -> int:  # pragma: no cover
    """Images in whole shells: those that fit in ``k_max``, or enough for ``k_min``; 0: unknown."""
    count = len(ordered)
    if over:
        for k in range(min(k_max, count - 1), 0, -1):
            if ordered[k] - ordered[k - 1] > IDENTICAL:
                return k
    for k in range(max(k_max + 1 if over else k_min, 1), count):
        if ordered[k] - ordered[k - 1] > IDENTICAL:
            return k
    return 0


@njit(cache=True, nogil=True)
def _near_limit(atoms: int, factor: Reals, radius: float) -> float:  # pragma: no cover - compiled
    """What the contract compares with ``MAX_NEAR``."""
    near = float(atoms)
    for r in range(7, 10):
        near *= floor(2.0 * radius * factor[r] + 1e-9) + 1.0
    return near


@njit(cache=True, nogil=True)
def _neighbours(
    at: Reals,
    own: int,
    everyone: Integers,
    atom_frac: Reals,
    atom_label: Integers,
    lattice: Reals,
    factor: Reals,
    cutoff: float,
    k_min: int,
    k_max: int,
    coincidence: float,
    max_near: float,
    reals: Reals,
    integers: Integers,
) -> tuple[float, int, float, Reals, Integers]:  # pragma: no cover - compiled
    """Rule 2: (refused radius or 0, neighbours, reach, buffers)."""
    atoms = len(everyone)
    if not _near_limit(atoms, factor, cutoff) <= max_near:
        return cutoff, 0, 0.0, reals, integers
    # With k_max binding, the cut-off may hold far more images than are wanted: begin with a
    # sphere that holds about the number needed to be sure.
    radius = (0.75 * (1.4 * max(k_max, 0) + 8.0) * factor[6] / (pi * atoms)) ** (1.0 / 3.0)
    if radius >= 0.9 * cutoff:
        radius = cutoff
    while True:
        if radius > cutoff and not _near_limit(atoms, factor, radius) <= max_near:
            return radius, 0, 0.0, reals, integers
        count, reals, integers = _search(
            0,
            atoms,
            everyone,
            at,
            atom_frac,
            atom_label,
            own,
            lattice,
            factor,
            radius,
            coincidence,
            reals,
            integers,
        )
        edge = cutoff - MARGIN
        inside = 0
        for k in range(count):
            inside += reals[k, 3] < edge
        over = inside > k_max
        if radius >= cutoff and not over and inside >= k_min:
            return 0.0, _keep_below(edge, count, reals, integers), cutoff, reals, integers
        if over or radius >= cutoff:
            ordered = np.sort(reals[:count, 3])
            enough = _shell_count(ordered, k_min, k_max, over)
            if enough > 0:
                reach = min(ordered[enough], cutoff) if over else max(ordered[enough], cutoff)
                middle = 0.5 * (ordered[enough - 1] + ordered[enough])
                kept = _keep_below(middle, count, reals, integers)
                return 0.0, kept, reach, reals, integers
        if radius >= cutoff:
            radius *= GROWTH
        else:
            radius *= 1.25
            if radius >= 0.9 * cutoff:
                radius = cutoff


@njit(cache=True, nogil=True)
def _distance_bound(
    at: Reals, image: Reals, own: bool, lattice: Reals, shortest: float, coincidence: float
) -> float:  # pragma: no cover - compiled
    """Some image of an atom that counts is no further than this [Å]."""
    x = y = z = 0.0
    for r in range(3):
        d = image[r] - at[r]
        d -= floor(d + 0.5)
        x, y, z = x + d * lattice[r, 0], y + d * lattice[r, 1], z + d * lattice[r, 2]
    distance = sqrt(x * x + y * y + z * z)
    if own and distance < coincidence:
        distance += shortest * ceil((coincidence + distance) / shortest)
    return distance


@njit(cache=True, nogil=True)
def _nearest_shell(
    at: Reals,
    own: int,
    first: int,
    last: int,
    by_label: Integers,
    atom_frac: Reals,
    atom_label: Integers,
    lattice: Reals,
    factor: Reals,
    cutoff: float,
    coincidence: float,
    max_near: float,
    reals: Reals,
    integers: Integers,
) -> tuple[float, int, Reals, Integers]:  # pragma: no cover - compiled
    """Rule 3 for one orbit: (refused radius or 0, images, buffers)."""
    bound = np.inf
    for m in range(first, last):
        k = by_label[m]
        is_own = atom_label[k] == own
        image = atom_frac[k]
        bound = min(bound, _distance_bound(at, image, is_own, lattice, factor[10], coincidence))
    allowed, slack, end = cutoff, 2.0 * IDENTICAL, 0.0
    while True:
        radius = bound + slack
        count, reals, integers = _search(
            first,
            last,
            by_label,
            at,
            atom_frac,
            atom_label,
            own,
            lattice,
            factor,
            radius,
            coincidence,
            reals,
            integers,
        )
        ordered = np.sort(reals[:count, 3])
        for k in range(count):
            end = ordered[k]
            if k + 1 < count and ordered[k + 1] - end > IDENTICAL:
                break
        # the reference grows its search from the cut-off until the shell is certain
        while not end + IDENTICAL < allowed:
            allowed *= GROWTH
            if not _near_limit(len(atom_frac), factor, allowed) <= max_near:
                return allowed, 0, reals, integers
        if count > 0 and end + IDENTICAL < radius:
            kept = _keep_below(end + 0.5 * IDENTICAL, count, reals, integers)
            return 0.0, kept, reals, integers
        slack *= 2.0


@njit(cache=True, nogil=True)
def _atoms(
    frac: Reals,
    rotations: Integers,
    translations: Reals,
    lattice: Reals,
    factor: Reals,
    multiplicity: Integers,
) -> tuple[Reals, Integers, Integers]:  # pragma: no cover - compiled
    """Distinct images: (N, 3) coordinates, (N,) site and operation; fills the multiplicities."""
    sites, ops = len(frac), len(rotations)
    image = np.empty((sites * ops, 3))
    site, op = np.empty(sites * ops, np.int64), np.empty(sites * ops, np.int64)
    inside, d = np.empty((ops, 3)), np.empty(3)
    count = 0
    for j in range(sites):
        kept = 0
        for h in range(ops):
            for r in range(3):
                x = translations[h, r]
                for s in range(3):
                    x += rotations[h, r, s] * frac[j, s]
                image[count, r] = x
                inside[kept, r] = x - floor(x)
            is_new = True
            for m in range(kept):
                near = True
                for r in range(3):
                    d[r] = inside[m, r] - inside[kept, r]
                    d[r] -= floor(d[r] + 0.5)
                    if abs(d[r]) > IDENTICAL * factor[7 + r] * (1.0 + 1e-9):
                        near = False
                        break
                if not near:
                    continue
                square = 0.0
                for s in range(3):
                    v = d[0] * lattice[0, s] + d[1] * lattice[1, s] + d[2] * lattice[2, s]
                    square += v * v
                if sqrt(square) <= IDENTICAL:
                    is_new = False
                    break
            if is_new:
                site[count], op[count] = j, h
                count += 1
                kept += 1
                if kept == ops:
                    break
        multiplicity[j] = kept
    return image[:count], site[:count], op[:count]


@njit(cache=True, nogil=True)
def _canonical(
    count: int, far: int, reals: Reals, integers: Integers
) -> Integers:  # pragma: no cover
    """Order of candidates by atom and shift; neighbours and far pairs are each in order."""
    order = np.arange(count)
    for k in range(count - far, count):  # insertion: far pairs are few
        m = k
        while m > 0:
            before = False
            for r in range(4):
                x, y = integers[k, r], integers[order[m - 1], r]
                if x != y:
                    before = x < y
                    break
            if not before:
                break
            order[m] = order[m - 1]
            m -= 1
        order[m] = k
    return order


@njit(cache=True, nogil=True)
def _build(
    lattice: Reals,
    frac: Reals,
    site_start: Integers,
    rotations: Integers,
    translations: Reals,
    op_start: Integers,
    op_count: Integers,
    orbit: Integers,
    cutoff: float,
    k_min: int,
    k_max: int,
    all_pairs: bool,
    coincidence: float,
    max_near: float,
) -> _Built:  # pragma: no cover - compiled
    """Edges as rows: source, target, operation, shift, is long-range; and vector, distance."""
    sites = len(frac)
    degree, reach = np.zeros(sites, np.int64), np.zeros(sites)
    multiplicity = np.zeros(sites, np.int64)
    refused = np.array([-1.0, 0.0, 0.0])
    out_int, out_real = np.empty((64 * sites + 64, 7), np.int64), np.empty((64 * sites + 64, 4))
    reals, integers = np.empty((256, FLAT)), np.empty((256, INTEGERS), np.int64)
    far_real, far_int = np.empty((256, FLAT)), np.empty((256, INTEGERS), np.int64)
    factor = np.empty(11)
    total = 0
    for b in range(len(lattice)):
        cell = lattice[b]
        _factor(cell, factor)
        first, last = site_start[b], site_start[b + 1]
        ops = slice(op_start[b], op_start[b] + op_count[b])
        atom_frac, atom_site, atom_op = _atoms(
            frac[first:last],
            rotations[ops],
            translations[ops],
            cell,
            factor,
            multiplicity[first:last],
        )
        atoms = len(atom_frac)
        if atoms == 0:
            continue
        atom_label = orbit[first:last][atom_site]
        everyone = np.arange(atoms)
        by_label = np.argsort(atom_label, kind="mergesort")
        for i in range(last - first):
            at, own = frac[first + i], orbit[first + i]
            radius, count, site_reach, reals, integers = _neighbours(
                at,
                own,
                everyone,
                atom_frac,
                atom_label,
                cell,
                factor,
                cutoff,
                k_min,
                k_max,
                coincidence,
                max_near,
                reals,
                integers,
            )
            reach[first + i] = site_reach
            far = 0
            begin = 0
            while all_pairs and radius == 0.0 and begin < atoms:
                label = atom_label[by_label[begin]]
                end = begin
                while end < atoms and atom_label[by_label[end]] == label:
                    end += 1
                seen = False
                for k in range(count):
                    if atom_label[integers[k, 0]] == label:
                        seen = True
                        break
                if not seen:
                    radius, more, far_real, far_int = _nearest_shell(
                        at,
                        own,
                        begin,
                        end,
                        by_label,
                        atom_frac,
                        atom_label,
                        cell,
                        factor,
                        cutoff,
                        coincidence,
                        max_near,
                        far_real,
                        far_int,
                    )
                    if count + far + more > len(reals):
                        reals = _grown(reals, count + far + more)
                        integers = _grown(integers, count + far + more)
                    for k in range(more):
                        reals[count + far] = far_real[k]
                        integers[count + far] = far_int[k]
                        integers[count + far, 4] = 1
                        far += 1
                begin = end
            if radius > 0.0:
                refused[0], refused[1] = b, radius
                refused[2] = _near_limit(atoms, factor, radius)
                return refused, 0, out_int, out_real, degree, reach, multiplicity
            count += far
            if total + count > len(out_int):
                out_int = _grown(out_int, total + count)
                out_real = _grown(out_real, total + count)
            order = _canonical(count, far, reals, integers)
            for m in range(count):
                k = order[m]
                atom = integers[k, 0]
                out_int[total, 0] = first + i
                out_int[total, 1] = first + atom_site[atom]
                out_int[total, 2] = atom_op[atom]
                out_int[total, 3:6] = integers[k, 1:4]
                out_int[total, 6] = integers[k, 4]
                out_real[total] = reals[k]
                total += 1
            degree[first + i] = count
    return refused, total, out_int, out_real, degree, reach, multiplicity
