"""What site symmetry makes the same: edges for the network, images of a site.

An operation that leaves site i in place turns the edges leaving i into one another. It leaves the
whole crystal as it is, and the network sees nothing that it changes: such edges have the same
length, end at images of the same site and make the same angles, so they carry the same message
and the same two outputs. An edge along which nothing is symmetric is equivalent to itself alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.graph.contract import CrystalArrays, IntArray, SymmetryMultigraph
from langevin_xtal.graph.snapping import SitePairs
from langevin_xtal.symmetry.sites import IDENTICAL

CLOSE = 1e-6
"""A site within it of its image stays in place, and an edge within it of another is it [Å]."""


class Messages(NamedTuple):
    """Which edges carry the same message: M of them on E edges."""

    first_edge: Tensor  #: (M,) the first edge of each message
    message: Tensor  #: (E,) message of each edge


def distinct_images(crystals: CrystalArrays) -> SitePairs | None:
    """(Site, operation) pairs, each image of a site once; None without the C++ extension.

    Images closer than ``IDENTICAL`` are one. Sums over the orbit of a site, where every image
    counts as often, need no more.
    """
    try:
        from langevin_xtal.graph import _multigraph
    except ImportError:
        return None
    site, op = _multigraph.distinct_images(*crystals.in_order(), identical=IDENTICAL)
    return SitePairs(torch.from_numpy(site), torch.from_numpy(op))


def edge_messages(crystals: CrystalArrays, graph: SymmetryMultigraph) -> Messages:
    """One message for the edges that are equivalent, in the order of their first edges."""
    first = equivalent_edges(crystals, graph)
    is_first = first == np.arange(len(first))
    message = (np.cumsum(is_first) - 1)[first]
    return Messages(torch.from_numpy(np.flatnonzero(is_first)), torch.from_numpy(message))


def equivalent_edges(crystals: CrystalArrays, graph: SymmetryMultigraph) -> IntArray:
    """(E,) the first edge equivalent to each edge; without the C++ extension, itself.

    Sites should lie on their special positions to rounding; the edges of one that does not are
    not equivalent.
    """
    try:
        from langevin_xtal.graph import _multigraph
    except ImportError:
        return np.arange(len(graph.edge_dist))
    return _multigraph.equivalent_edges(
        *crystals.in_order(),
        edge_index=graph.edge_index,
        edge_vec=graph.edge_vec,
        edge_dist=graph.edge_dist,
        edge_is_long_range=graph.edge_is_long_range,
        edge_start=graph.edge_start,
        close=CLOSE,
    )
