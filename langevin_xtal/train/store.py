"""A packed dataset as tensors, from which batches are gathered."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.noising import Crystals
from langevin_xtal.symmetry.groups import operation_table
from langevin_xtal.symmetry.lattice import lattice_coordinates, lattice_driver, lattice_freedom


class CrystalStore:
    """All crystals of a packed dataset, ready to be batched.

    Sites that end closer than rounding to a special position were placed there by ``data
    prepare``; nothing is moved here.
    """

    def __init__(self, data: PackedDataset) -> None:
        table = operation_table()
        numbers = range(1, 231)
        driver = np.array([lattice_driver(n) for n in numbers])[data.group - 1]
        free = np.array([lattice_freedom(n) for n in numbers])[data.group - 1]
        self.sites = torch.from_numpy(np.diff(data.site_start))
        self._start = torch.from_numpy(np.asarray(data.site_start, dtype=np.int64))
        self._numbers = torch.from_numpy(np.asarray(data.numbers, dtype=np.int64))
        self._frac = torch.from_numpy(np.asarray(data.frac, dtype=np.float64))
        self._coordinates = torch.from_numpy(lattice_coordinates(data.lattice))
        self._driver = torch.from_numpy(driver)
        self._free = torch.from_numpy(free)
        self._op_start = torch.from_numpy(table.start[data.group - 1])
        self._op_count = torch.from_numpy(table.start[data.group] - table.start[data.group - 1])

    def __len__(self) -> int:
        return len(self.sites)

    def batch(self, index: Tensor) -> Crystals:
        """The crystals with these indices, in this order."""
        count = self.sites[index]
        start = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(count, 0)])
        site = torch.arange(int(start[-1])) + torch.repeat_interleave(
            self._start[index] - start[:-1], count
        )
        return Crystals(
            numbers=self._numbers[site],
            frac=self._frac[site],
            site_start=start,
            coordinates=self._coordinates[index],
            driver=self._driver[index],
            free=self._free[index],
            op_start=self._op_start[index],
            op_count=self._op_count[index],
        )
