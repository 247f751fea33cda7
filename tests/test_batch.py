"""Batches of crystals: numpy's and torch's alike, against crystals taken one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from langevin_xtal.dataset.join import join
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.diffusion.noising import Crystals
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.symmetry.lattice import lattice_coordinates

DATA = reference_dataset()
PICKED = np.array([5, 2, 41, 40, 0, 107])


def as_tensors(data: PackedDataset) -> Crystals:
    return Crystals.of_groups(
        data.group,
        data.site_counts.tolist(),
        numbers=data.numbers,
        frac=data.frac,
        coordinates=lattice_coordinates(data.lattice),
    )


BATCHES = [DATA, StructureSet.from_packed(DATA, "reference"), as_tensors(DATA)]


def array(values: Any) -> np.ndarray:
    return np.asarray(values)


@pytest.mark.parametrize("batch", BATCHES, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("index", [PICKED, np.zeros(0, dtype=np.int64), np.arange(len(DATA))])
def test_picked_crystals_are_those_of_the_batch(batch: Any, index: np.ndarray) -> None:
    given = torch.from_numpy(index) if isinstance(batch, Crystals) else index
    found = batch.select(given)
    assert type(found) is type(batch)
    assert len(found) == len(index)
    assert array(found.site_start)[0] == 0
    for place, k in enumerate(index.tolist()):
        here, there = found.sites_of(place), batch.sites_of(k)
        for name in batch.PER_SITE:
            np.testing.assert_array_equal(
                array(getattr(found, name)[here]), array(getattr(batch, name)[there])
            )
        for name in batch.PER_CRYSTAL:
            np.testing.assert_array_equal(
                array(getattr(found, name)[place]), array(getattr(batch, name)[k])
            )


@pytest.mark.parametrize("batch", BATCHES, ids=lambda b: type(b).__name__)
def test_the_crystal_of_each_site(batch: Any) -> None:
    owner = array(batch.site_crystal)
    assert len(owner) == len(batch.numbers)
    for k in range(len(batch)):
        assert (owner[batch.sites_of(k)] == k).all()
    np.testing.assert_array_equal(array(batch.site_counts), np.bincount(owner))


def test_a_known_number_of_sites_changes_nothing() -> None:
    crystals, index = as_tensors(DATA), torch.from_numpy(PICKED)
    plain, counted = (
        crystals.select(index),
        crystals.select(index, int(DATA.site_counts[PICKED].sum())),
    )
    for name in ("site_start", *Crystals.PER_SITE, *Crystals.PER_CRYSTAL):
        torch.testing.assert_close(getattr(plain, name), getattr(counted, name), rtol=0, atol=0)


def test_parts_make_the_whole() -> None:
    crystals = as_tensors(DATA)
    parts = [
        crystals.part(slice(0, 30)),
        crystals.part(slice(30, 31)),
        crystals.part(slice(31, 108)),
    ]
    for name, value in Crystals.joined(parts).items():
        torch.testing.assert_close(value, getattr(crystals, name), rtol=0, atol=0)
    assert join([DATA.select(range(50)), DATA.select(range(50, len(DATA)))]) == DATA
