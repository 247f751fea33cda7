"""Packed datasets put together and split, without the crystals that another set must not know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import reduced_formula
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError

NEAR_VOLUME = 0.12
"""Largest difference of volumes per atom of near-duplicates, of one formula and group."""

_Kind = tuple[str, int]


def join(parts: Sequence[PackedDataset]) -> PackedDataset:
    """All crystals of several datasets, one after the other; properties missing in some are NaN.

    Raises
    ------
    DataError
        When there are no datasets.
    """
    if not parts:
        raise DataError("no datasets were given to join; give at least one")
    names = dict.fromkeys(name for p in parts for name in p.properties)
    return PackedDataset(
        **PackedDataset.joined(parts),
        properties={
            name: np.concatenate([p.properties.get(name, np.full(len(p), np.nan)) for p in parts])
            for name in names
        },
        meta={"joined": [p.meta | {"data_hash": p.content_hash} for p in parts]},
    )


def split(
    data: PackedDataset, held_out: int, *, seed: int = 0
) -> tuple[PackedDataset, PackedDataset]:
    """Crystals to train on, and ``held_out`` others drawn at random, no near-duplicates.

    Raises
    ------
    DataError
        When nothing would be left to train on.
    """
    if not 0 < held_out < len(data):
        raise DataError(
            f"{held_out} of {len(data)} crystals cannot be held out; "
            + (f"give 1 to {len(data) - 1}" if len(data) > 1 else "give a larger dataset")
        )
    chosen = np.zeros(len(data), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(data))[:held_out]] = True
    others = data.select(chosen)
    rest = data.select(~chosen)
    rest = rest.select(~near_duplicates(rest, others))
    if not len(rest):
        raise DataError(
            f"every other crystal has a near-duplicate among the {held_out} held out; "
            "hold out fewer"
        )
    return rest, others


def near_duplicates(data: PackedDataset, others: PackedDataset) -> NDArray[np.bool_]:
    """(B,) which crystals of ``data`` have a near-duplicate among ``others``.

    A near-duplicate has the same reduced formula and space group, and a volume per atom within
    ``NEAR_VOLUME`` of it: a crude test that finds copies under other names, and more.
    """
    known: dict[_Kind, list[float]] = {}
    for kind, volume in zip(_kinds(others), _volumes(others), strict=True):
        known.setdefault(kind, []).append(volume)
    found = [
        any(abs(volume / v - 1) < NEAR_VOLUME for v in known.get(kind, []))
        for kind, volume in zip(_kinds(data), _volumes(data), strict=True)
    ]
    return np.array(found, dtype=bool)


def _volumes(data: PackedDataset) -> list[float]:
    return (data.volumes / data.atom_counts).tolist()


def _kinds(data: PackedDataset) -> list[_Kind]:
    atoms = [data.unit(k).atom_numbers for k in range(len(data))]
    return [(reduced_formula(z), int(g)) for z, g in zip(atoms, data.group, strict=True)]
