"""Atoms of the cell from the sites and operations of a CIF, and what belongs to them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import RejectError
from langevin_xtal.structures.cif_block import (
    Block,
    number,
)
from langevin_xtal.structures.cif_sites import Site
from langevin_xtal.structures.operations import Operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NEAR = (0.05, 0.25)
"""Images of a site closer than this are one atom [Å]: the first for coordinates with many digits,
the second, at most, for few."""
APART = 0.3
"""Several images of a site are at least this far from each other [Å]."""
SAME = 1e-3
"""Two listed sites closer than this are one site [Å]."""
FULL = 2e-3
"""An occupancy that differs from 1 by less is full."""
MOST_MADE = 100_000


@dataclass
class Made:
    """N atoms of the cell."""

    frac: FloatArray  #: (N, 3) in [0, 1)
    owner: IntArray  #: (N,) site that each is an image of
    moments: FloatArray | None
    contradiction: str
    notes: list[str]


def expanded(ops: Operations, lattice: FloatArray, sites: list[Site], block: Block) -> Made:
    """Expand the sites.

    Raises
    ------
    RejectError
        For partial occupancy, and images of a site that are neither apart nor one.
    """
    rotations = np.swapaxes(ops.rotations, 1, 2)
    longest = float(np.linalg.norm(lattice, axis=1).max())
    images: list[FloatArray] = []
    points: list[FloatArray] = []
    wrong = ""
    total = 0
    for site in sites:
        reach = min(max(NEAR[0], 3 * 10.0**-site.digits * longest), NEAR[1])
        point, found = _images(site, rotations, ops.translations, lattice, reach)
        points.append(point)
        images.append(found)
        total += len(found)
        if total > MOST_MADE:
            raise RejectError(f"more than {MOST_MADE} atoms")
        if site.multiplicity is not None and len(ops) > 1 and site.multiplicity != len(found):
            wrong = wrong or (
                f"site {site.label} has multiplicity {site.multiplicity} in the file and "
                f"{len(found)} images"
            )
    kept, notes = _one_each(sites, images, lattice)
    frac = np.concatenate([images[k] for k in kept])
    owner = np.repeat(kept, [len(images[k]) for k in kept])
    moments = _moments(block, sites, ops, lattice, points, kept, images)
    return Made(frac, owner, moments, wrong, notes)


def _images(
    site: Site,
    rotations: IntArray,
    translations: FloatArray,
    lattice: FloatArray,
    reach: float,
) -> tuple[FloatArray, FloatArray]:
    """(3,) the site on its special position, and its (M, 3) distinct images in [0, 1)."""
    order = len(rotations)
    point = site.frac
    if order == 1:
        return point, _wrapped(point[None])
    for _ in range(3):
        delta = point @ rotations + translations - point
        delta -= np.rint(delta)
        length = np.linalg.norm(delta @ lattice, axis=1)
        near = length < reach
        point = point + delta[near].mean(axis=0)
        if length[near].max() < 1e-6:
            break
    count = int(near.sum())
    delta = point @ rotations + translations - point
    delta -= np.rint(delta)
    length = np.linalg.norm(delta @ lattice, axis=1)
    if order % count or length[near].max() > 1e-4 or length[~near].min(initial=9.0) < APART:
        raise RejectError(
            "images of a site are too close to be several atoms and too far apart to be one",
            f"site {site.label}",
        )
    everything = _wrapped(point @ rotations + translations)
    for shift in (0.0, 0.5):  # a coarse grid may cut through one place, two do not
        grid = np.rint(everything * 1e5 + shift).astype(np.int64) % 100_000
        _, first = np.unique(grid @ np.array([1, 200_003, 40_000_000_007]), return_index=True)
        if len(first) * count == order:
            return point, everything[np.sort(first)]
    raise RejectError(
        "images of a site are too close to be several atoms and too far apart to be one",
        f"site {site.label}",
    )


def _wrapped(frac: FloatArray) -> FloatArray:
    frac = frac - np.floor(frac)
    return np.where(frac > 1 - 1e-9, 0.0, frac)


def _one_each(
    sites: list[Site], images: list[FloatArray], lattice: FloatArray
) -> tuple[list[int], list[str]]:
    """Sites that count: those listed twice once; and occupancies checked.

    Raises
    ------
    RejectError
        For partial occupancy.
    """
    notes: list[str] = []
    left = dict.fromkeys(range(len(sites)))
    occupancy = [site.occupancy for site in sites]
    longest = float(np.linalg.norm(lattice, axis=1).max())
    for k, j in _meeting(sites, images, lattice, longest):
        if k not in left or j not in left:
            continue
        if sites[j].number != sites[k].number:
            raise RejectError(
                "partial occupancy", f"sites {sites[k].label} and {sites[j].label} are one place"
            )
        if len(images[j]) != len(images[k]):
            continue
        del left[j]
        if min(occupancy[k], occupancy[j]) > 1 - FULL:
            if sites[j].label != sites[k].label:
                notes.append(f"sites {sites[k].label} and {sites[j].label} are one, taken once")
        else:
            occupancy[k] += occupancy[j]
    for k in left:
        if abs(occupancy[k] - 1) > FULL:
            what = "partial occupancy" if occupancy[k] < 1 else "occupancy above 1"
            raise RejectError(what, f"site {sites[k].label} has occupancy {occupancy[k]:g}")
    return list(left), _counted(notes)


def _meeting(
    sites: list[Site], images: list[FloatArray], lattice: FloatArray, longest: float
) -> list[tuple[int, int]]:
    """Pairs of sites of which an image of one lies on an image of the other."""
    if len(sites) == 1:
        return []
    from scipy.spatial import cKDTree

    frac = np.concatenate(images)
    owner = np.repeat(np.arange(len(images)), [len(image) for image in images])
    limit = np.array([max(SAME, min(2 * 10.0**-site.digits * longest, NEAR[0])) for site in sites])
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    reach = 2 * np.pi * float(limit.max()) * float(np.linalg.norm(1 / heights))
    # on a torus, neighbours across the faces of the cell are near
    torus = np.concatenate([np.cos(2 * np.pi * frac), np.sin(2 * np.pi * frac)], axis=1)
    pairs = cKDTree(torus).query_pairs(min(reach, 7.0), output_type="ndarray")
    if not len(pairs):
        return []
    one, other = owner[pairs[:, 0]], owner[pairs[:, 1]]
    delta = frac[pairs[:, 0]] - frac[pairs[:, 1]]
    delta -= np.rint(delta)
    close = np.linalg.norm(delta @ lattice, axis=1) < np.minimum(limit[one], limit[other])
    close &= one != other
    found = np.sort(np.column_stack([one[close], other[close]]), axis=1)
    return [tuple(pair) for pair in np.unique(found, axis=0).tolist()]


def _counted(notes: list[str]) -> list[str]:
    return (
        notes if len(notes) <= 3 else [*notes[:2], f"{len(notes) - 2} more sites are listed twice"]
    )


def _moments(
    block: Block,
    sites: list[Site],
    ops: Operations,
    lattice: FloatArray,
    points: list[FloatArray],
    kept: list[int],
    images: list[FloatArray],
) -> FloatArray | None:
    """(N, 3) Cartesian moments [μB], None without any."""
    labels = block.values.get("_atom_site_moment_label")
    axes = [block.values.get(f"_atom_site_moment_crystalaxis_{axis}") for axis in "xyz"]
    if labels is None or any(axis is None or len(axis) != len(labels) for axis in axes):
        return None
    unit = lattice / np.linalg.norm(lattice, axis=1)[:, None]
    of = {}
    for k, label in enumerate(labels):
        along = [number(axis[k], f"the moment of {label}") for axis in axes if axis is not None]
        of[label] = np.array(along) @ unit
    inverse = np.linalg.inv(lattice)
    turns = [inverse @ w.T @ lattice * round(float(np.linalg.det(w))) * r for w, r in zip(
        ops.rotations, ops.reversal, strict=True)]  # fmt: skip
    result = []
    for k in kept:
        moment = of.get(sites[k].label, np.zeros(3))
        everything = points[k] @ np.swapaxes(ops.rotations, 1, 2) + ops.translations
        delta = images[k][:, None] - everything
        delta -= np.rint(delta)
        which = ((delta @ lattice) ** 2).sum(axis=2).argmin(axis=1)
        result += [moment @ turns[h] for h in which]
    return np.array(result)


def oxidation_states(block: Block, sites: list[Site], owner: IntArray) -> FloatArray | None:
    """(N,) oxidation states from the table of atom types, or the charges of type symbols."""
    names = block.values.get("_atom_type_symbol", [])
    states = block.values.get("_atom_type_oxidation_number", [])
    table = {}
    for name, state in zip(names, states, strict=False):
        if re.fullmatch(r"[+-]?\d+(\.\d+)?", state):
            table[name] = float(state)
    if not table:
        for site in sites:
            charge = re.fullmatch(r"[A-Za-z]+(?:(\d*)([+-])|([+-])(\d+))", site.type_symbol)
            if charge:
                size = float(charge[1] or charge[4] or 1)
                table[site.type_symbol] = -size if "-" in (charge[2], charge[3]) else size
    if not table or not any(site.type_symbol in table for site in sites):
        return None
    of_site = np.array([table.get(site.type_symbol, np.nan) for site in sites])
    return of_site[owner]
