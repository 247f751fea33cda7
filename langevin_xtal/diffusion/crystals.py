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

    Parameters
    ----------
    device
        Where all crystals lie and batches are gathered; about 200 bytes a crystal and 40 a site.
    """

    def __init__(self, data: PackedDataset, device: str = "cpu") -> None:
        table = operation_table()
        numbers = range(1, 231)
        driver = np.array([lattice_driver(n) for n in numbers])[data.group - 1]
        free = np.array([lattice_freedom(n) for n in numbers])[data.group - 1]
        op_count = table.start[data.group] - table.start[data.group - 1]
        self.sites = torch.from_numpy(np.diff(data.site_start))  #: (N,) of each, on the host
        self._device = device
        self._start = self._there(data.site_start, np.int64)
        self._numbers = self._there(data.numbers, np.int64)
        self._frac = self._there(data.frac, np.float64)
        self._coordinates = self._there(lattice_coordinates(data.lattice), np.float64)
        self._driver = self._there(driver, np.int64)
        self._free = self._there(free, np.bool_)
        self._op_start = self._there(table.start[data.group - 1], np.int64)
        self._op_count = self._there(op_count, np.int64)

    def _there(self, values: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=dtype)).to(self._device)

    def __len__(self) -> int:
        return len(self.sites)

    def batch(self, index: Tensor) -> Crystals:
        """The crystals with these indices, on the store's device, in this order.

        The indices are the host's: it knows the size of the batch without asking the device.
        """
        sites = int(self.sites[index].sum())
        index = index.to(self._device, non_blocking=True)
        first = self._start[index]
        count = self._start[index + 1] - first
        start = torch.cat([count.new_zeros(1), torch.cumsum(count, 0)])
        shift = torch.repeat_interleave(first - start[:-1], count, output_size=sites)
        site = torch.arange(sites, device=self._device) + shift
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
