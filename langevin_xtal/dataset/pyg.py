"""Packed files as a torch-geometric dataset of multigraphs; needs the extra ``[pyg]``.

>>> from torch_geometric.loader import DataLoader                      # doctest: +SKIP
>>> graphs = PackedGraphs("train.lxd", target="formation_energy_per_atom")  # doctest: +SKIP
>>> loader = DataLoader(graphs, batch_size=32, shuffle=True)           # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError
from langevin_xtal.extras import require
from langevin_xtal.graph import CrystalArrays, GraphSettings, build_multigraph

_data = require("torch_geometric.data", "pyg", "a torch-geometric dataset")


class PackedGraphs(_data.Dataset):  # type: ignore[misc, name-defined, unused-ignore]
    """One :class:`~langevin_xtal.graph.pyg.MultigraphData` of every crystal of a packed file.

    Multigraphs are built when they are asked for, so a file of any size starts at once. Besides
    the fields of the multigraph each has ``group`` (1,), ``id``, the file's properties, (1,) each,
    and ``y`` (1,), the property chosen as ``target``.

    Parameters
    ----------
    data
        A packed dataset, or the path of one.
    settings
        Which images are neighbours.
    target
        Name of the property that becomes ``y``; crystals without a value are left out.
    with_triplets
        Whether triplets and the cosines between their edges are added.
    transform
        Called with every crystal's data, as torch-geometric does.

    Raises
    ------
    MissingPackageError
        Where torch-geometric is not installed.
    DataError
        For a file that cannot be read, or a property that it does not have.
    """

    def __init__(
        self,
        data: PackedDataset | str | os.PathLike[str],
        settings: GraphSettings | None = None,
        *,
        target: str | None = None,
        with_triplets: bool = True,
        transform: Any = None,
    ) -> None:
        packed = data if isinstance(data, PackedDataset) else PackedDataset.load(data)
        if target is not None:
            if target not in packed.properties:
                known = ", ".join(packed.properties) or "none"
                raise DataError(f"the dataset has no property {target!r}; it has {known}")
            packed = packed.select(np.flatnonzero(np.isfinite(packed.properties[target])))
        self.packed, self.target = packed, target
        self.settings = GraphSettings() if settings is None else settings
        self.with_triplets = with_triplets
        super().__init__(transform=transform)

    def len(self) -> int:
        """Crystals."""
        return len(self.packed)

    def get(self, idx: int) -> Any:
        """The multigraph of one crystal."""
        packed, sites = self.packed, self.packed.sites_of(idx)
        crystals = CrystalArrays.of_groups(
            packed.lattice[idx][None],
            packed.frac[sites],
            np.array([0, sites.stop - sites.start]),
            packed.group[idx : idx + 1],
        )
        graph = build_multigraph(crystals, self.settings, threads=1)
        (found,) = graph.to_pyg(crystals, packed.numbers[sites], with_triplets=self.with_triplets)
        found.group = torch.tensor(packed.group[idx : idx + 1])
        found.id = str(packed.id[idx])
        for name, values in packed.properties.items():
            found[name] = torch.tensor(values[idx : idx + 1], dtype=found.pos.dtype)
        if self.target is not None:
            found.y = found[self.target]
        return found
