"""A packed dataset as tensors, from which batches are gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.noising import Crystals
from langevin_xtal.symmetry.lattice import lattice_coordinates


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
        self.sites = torch.from_numpy(data.site_counts)  #: (N,) of each, on the host
        self._device = device
        self._crystals = Crystals.of_groups(
            data.group,
            data.site_counts.tolist(),
            numbers=data.numbers,
            frac=data.frac,
            coordinates=lattice_coordinates(data.lattice),
        ).to(device)

    def __len__(self) -> int:
        return len(self.sites)

    def batch(self, index: Tensor) -> Crystals:
        """The crystals with these indices, on the store's device, in this order.

        The indices are the host's: it knows the size of the batch without asking the device.
        """
        sites = int(self.sites[index].sum())
        return self._crystals.select(index.to(self._device, non_blocking=True), sites)
