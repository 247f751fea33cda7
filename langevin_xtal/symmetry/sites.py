"""Sites under a space group: orbits, site symmetry, and snapping to special positions.

``rotations`` (G, 3, 3) and ``translations`` (G, 3) act as ``f' = W f + w`` in any cell they are
consistent with, so the functions serve conventional, primitive and P1 descriptions alike.

A site near a special position has several images near itself. :func:`snap_site` finds the special
position they surround: the nearest fixed space of an operation is entered first, then, staying
inside it, the next one, as long as the total displacement stays within the radius. The result is
placed exactly, by averaging over its stabiliser.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

IDENTICAL = 1e-3
"""Two points closer than this are the same point [Å]."""


def wrap(frac: FloatArray) -> FloatArray:
    """Fractional coordinates in [0, 1); plain ``x % 1`` gives 1.0 for tiny negative x."""
    wrapped = np.asarray(frac, dtype=float) % 1.0
    return np.where(wrapped >= 1.0, 0.0, wrapped)


def tidy(frac: FloatArray) -> FloatArray:
    """Coordinates without rounding next to multiples of 1/24, where all fixed ones lie."""
    nearest = np.rint(frac * 24) / 24
    return np.where(np.abs(frac - nearest) < 1e-12, nearest, frac)


def image_displacements(
    point: FloatArray, rotations: IntArray, translations: FloatArray
) -> FloatArray:
    """(G, 3) fractional vectors from ``point`` to its nearest image under each operation."""
    delta = point @ np.swapaxes(rotations, 1, 2) + translations - point
    return delta - np.rint(delta)


def orbit(
    point: FloatArray, rotations: IntArray, translations: FloatArray, lattice: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Distinct images of a site in one cell.

    Returns
    -------
    frac
        (M, 3) images ``W f + w``, not wrapped; M is the multiplicity.
    operation
        (M,) the lowest operation index that gives each.
    """
    images = point @ np.swapaxes(rotations, 1, 2) + translations
    kept: list[int] = []
    for h, image in enumerate(images):
        delta = images[kept] - image
        delta -= np.rint(delta)
        if not kept or (np.linalg.norm(delta @ lattice, axis=1) > IDENTICAL).all():
            kept.append(h)
    return images[kept], np.array(kept, dtype=np.int64)


def stabiliser(
    point: FloatArray, rotations: IntArray, translations: FloatArray, lattice: FloatArray
) -> IntArray:
    """Indices of the operations that leave a site where it is, up to a lattice translation."""
    delta = image_displacements(point, rotations, translations)
    return np.flatnonzero(np.linalg.norm(delta @ lattice, axis=1) < IDENTICAL)


def site_projector(rotations: IntArray, lattice: FloatArray) -> FloatArray:
    """(3, 3) Cartesian projector onto the free directions of a site with these rotations.

    The mean over the site-symmetry group; for row vectors, ``free = vector @ projector``.
    """
    mean = np.mean(rotations, axis=0)
    return np.linalg.inv(lattice) @ mean.T @ lattice


def group_inverse(rotations: IntArray | FloatArray) -> FloatArray:
    """(G, 3, 3) group inverse of W − I.

    For an image displacement u = h(f) − f that lies in the range of W − I (no screw or glide
    part), ``−(W − I)# u`` leads from f to the nearest point that h leaves fixed. W has finite
    order, so the group inverse exists and equals (W − I + F)⁻¹ − F with F the mean of W's powers.
    """
    fixed = fixed_projector(rotations)
    return np.linalg.inv(rotations - np.eye(3) + fixed) - fixed


def fixed_projector(rotations: IntArray | FloatArray) -> FloatArray:
    """(G, 3, 3) projector onto the vectors each W leaves fixed: the mean of its 12 powers."""
    total, power = np.zeros(rotations.shape), np.broadcast_to(np.eye(3), rotations.shape)
    for _ in range(12):  # every crystallographic order divides 12
        total, power = total + power, power @ rotations
    return total / 12.0


def snap_site(
    point: FloatArray,
    rotations: IntArray,
    translations: FloatArray,
    lattice: FloatArray,
    radius: float,
) -> FloatArray:
    """The most special position reached from ``point`` within ``radius`` [Å].

    Parameters
    ----------
    point
        (3,) fractional coordinates.
    radius
        Largest displacement [Å]; 0 only removes rounding.

    Returns
    -------
    FloatArray
        (3,) fractional coordinates, not wrapped; ``point`` itself when nothing is near.
    """
    inverse, fixed = group_inverse(rotations), fixed_projector(rotations)
    frame = np.linalg.inv(lattice)
    current: FloatArray = np.asarray(point, dtype=float)
    # Cartesian blocks, for column vectors, that vanish where the point may move: it stays on the
    # special position it is on already
    stays = stabiliser(current, rotations, translations, lattice)
    entered = [lattice.T @ (rotations[stays].mean(axis=0) - np.eye(3)) @ frame.T]
    for _ in range(3):
        u = image_displacements(current, rotations, translations)
        screw = np.einsum("hij,hj->hi", fixed, u)
        v = -np.einsum("hij,hj->hi", inverse, u)
        distance = np.linalg.norm(v @ lattice, axis=1)
        usable = (np.linalg.norm(screw @ lattice, axis=1) < IDENTICAL) & (
            np.linalg.norm(u @ lattice, axis=1) > IDENTICAL
        )
        if not usable.any():
            break
        nearest = int(np.argmin(np.where(usable, distance, np.inf)))
        if distance[nearest] > radius:
            break
        block = lattice.T @ (rotations[nearest] - np.eye(3)) @ frame.T
        blocks = np.concatenate([*entered, block])
        wanted = np.concatenate([np.zeros(3 * len(entered)), -u[nearest] @ lattice])
        step = np.linalg.pinv(blocks, rcond=1e-6) @ wanted
        trial = current + step @ frame
        moved = np.linalg.norm((trial - point) @ lattice)
        if np.abs(blocks @ step - wanted).max() > IDENTICAL or moved > radius:
            break
        current = trial
        entered.append(block)
    stay = image_displacements(current, rotations, translations)
    return current + stay[np.linalg.norm(stay @ lattice, axis=1) < IDENTICAL].mean(axis=0)
