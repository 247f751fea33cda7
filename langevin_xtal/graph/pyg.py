"""Multigraphs as torch-geometric data; needs the extra ``[pyg]``, asked for on import.

>>> graph = build_multigraph(crystals, GraphSettings())                # doctest: +SKIP
>>> first = graph.to_pyg(crystals, numbers)[0]                         # doctest: +SKIP
>>> first.edge_index, first.edge_vec, first.triplet_index              # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from langevin_xtal.errors import InputError
from langevin_xtal.extras import require
from langevin_xtal.graph.contract import (
    BoolArray,
    CrystalArrays,
    FloatArray,
    IntArray,
    SymmetryMultigraph,
    triplets,
)

_data = require("torch_geometric.data", "pyg", "a multigraph for torch-geometric")


class MultigraphData(_data.Data):  # type: ignore[misc, name-defined, unused-ignore]
    """One crystal: A sites, E directed edges, T triplets; a batch joins several.

    An edge leaves the site ``edge_index[0]``; its far end is an image of ``edge_index[1]``. A
    layer whose sums run over the edges leaving a site has ``flow="target_to_source"``.

    ======================  =========  ==========================================================
    field                   shape      meaning
    ======================  =========  ==========================================================
    ``z``                   (A,)       atomic numbers, where they were given
    ``frac``, ``pos``       (A, 3)     fractional and Cartesian coordinates [Å]
    ``cell``                (1, 3, 3)  rows a, b, c of the conventional cell [Å]
    ``multiplicity``        (A,)       atoms of each site in the conventional cell
    ``site_reach``          (A,)       reach of each site [Å]
    ``edge_index``          (2, E)     source and target site
    ``edge_vec``            (E, 3)     from the source to the image [Å]
    ``edge_dist``           (E,)       its length [Å]
    ``edge_op``             (E,)       operation of the image
    ``edge_shift``          (E, 3)     lattice vector of the image
    ``edge_is_self_image``  (E,)       whether the target is an image of the source
    ``edge_is_long_range``  (E,)       whether the edge is beyond reach
    ``triplet_index``       (2, T)     edges e = i → h(j) and f = j → k
    ``triplet_cosine``      (T,)       cosine of the angle at h(j)
    ======================  =========  ==========================================================
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What a batch adds to an index: triplets count edges, not sites."""
        if key == "triplet_index":
            return self.edge_index.shape[1]
        return super().__inc__(key, value, *args, **kwargs)


def to_pyg(
    graph: SymmetryMultigraph,
    crystals: CrystalArrays,
    numbers: IntArray | None,
    *,
    with_triplets: bool,
    dtype: torch.dtype,
) -> list[MultigraphData]:
    """See :meth:`~langevin_xtal.graph.contract.SymmetryMultigraph.to_pyg`."""
    sites = len(graph.site_reach)
    if sites != len(crystals.frac):
        raise InputError(
            f"the multigraph has {sites} sites and the crystals have {len(crystals.frac)}; give "
            "the crystals that it was built from"
        )
    if numbers is not None and len(numbers) != sites:
        raise InputError(f"{len(numbers)} atomic numbers were given for {sites} sites")
    pairs, cosines = triplets(graph, crystals) if with_triplets else (None, None)
    return [
        _one(graph, crystals, numbers, pairs, cosines, crystal, dtype)
        for crystal in range(len(crystals))
    ]


def _one(
    graph: SymmetryMultigraph,
    crystals: CrystalArrays,
    numbers: IntArray | None,
    pairs: IntArray | None,
    cosines: FloatArray | None,
    crystal: int,
    dtype: torch.dtype,
) -> MultigraphData:
    first, last = crystals.site_start[crystal : crystal + 2]
    sites = slice(first, last)
    edges = slice(graph.edge_start[first], graph.edge_start[last])

    def real(values: FloatArray) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    def whole(values: IntArray | BoolArray) -> torch.Tensor:
        return torch.tensor(values)

    lattice = crystals.lattice[crystal]
    found = MultigraphData(
        frac=real(crystals.frac[sites]),
        pos=real(crystals.frac[sites] @ lattice),
        cell=real(lattice[None]),
        multiplicity=whole(graph.multiplicity[sites]),
        site_reach=real(graph.site_reach[sites]),
        edge_index=whole(graph.edge_index[:, edges] - first),
        edge_vec=real(graph.edge_vec[edges]),
        edge_dist=real(graph.edge_dist[edges]),
        edge_op=whole(graph.edge_op[edges]),
        edge_shift=whole(graph.edge_shift[edges]),
        edge_is_self_image=whole(graph.edge_is_self_image[edges]),
        edge_is_long_range=whole(graph.edge_is_long_range[edges]),
    )
    found.num_nodes = int(last - first)
    if numbers is not None:
        found.z = whole(np.asarray(numbers[sites], dtype=np.int64))
    if pairs is not None and cosines is not None:
        mine = slice(*np.searchsorted(pairs[0], [edges.start, edges.stop]))
        found.triplet_index = whole(pairs[:, mine] - edges.start)
        found.triplet_cosine = real(cosines[mine])
    return found
