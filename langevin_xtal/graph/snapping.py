"""Snapping many sites at once: the batched form of :func:`langevin_xtal.symmetry.snap_site`.

In free mode a noised special position is a cluster of m nearly coincident copies of one atom.
We count such a cluster as **one atom at the special position it surrounds**, plus the
displacement of the stored site from it, which the batch turns into one extra edge (see
:mod:`langevin_xtal.graph.batch`). As σ → 0 the displacement vanishes and free and exact mode give
the network the same multigraph.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.graph.contract import CrystalArrays
from langevin_xtal.symmetry.groups import operation_table
from langevin_xtal.symmetry.sites import IDENTICAL, fixed_projector, group_inverse


class Operations(NamedTuple):
    """Operations of all groups in one table, with what snapping needs of each; float64."""

    rotations: Tensor  #: (O, 3, 3) W
    translations: Tensor  #: (O, 3) w
    inverse: Tensor  #: (O, 3, 3) group inverse of W − I
    fixed: Tensor  #: (O, 3, 3) projector onto the vectors W leaves fixed
    back: Tensor  #: (O, 3, 3) inverse of W
    whole: Tensor  #: (O, 3, 3) W as int64, for the builders on the host

    @classmethod
    def of(cls, rotations: np.ndarray, translations: np.ndarray) -> Operations:
        """From integer matrices (O, 3, 3) and fractional translations (O, 3)."""
        return cls(
            torch.as_tensor(rotations, dtype=torch.float64),
            torch.as_tensor(translations, dtype=torch.float64),
            torch.as_tensor(group_inverse(rotations)),
            torch.as_tensor(fixed_projector(rotations)),
            torch.as_tensor(np.linalg.inv(rotations).round()),
            torch.as_tensor(rotations, dtype=torch.int64),
        )

    def to(self, device: torch.device | str) -> Operations:
        """The same table on another device."""
        return Operations(*(t.to(device) for t in self))


@cache
def all_operations() -> Operations:
    """The operations of the 230 groups, in the order of ``operation_table()``."""
    table = operation_table()
    return Operations.of(table.rotations, table.translations24 / 24.0)


class SitePairs(NamedTuple):
    """All (site, operation) pairs of a batch, site by site."""

    site: Tensor  #: (P,) site of each pair
    op: Tensor  #: (P,) row of the operation table


def site_pairs(site_crystal: Tensor, op_start: Tensor, op_count: Tensor) -> SitePairs:
    """Pairs of sites (A,) of crystals with operations ``op_start``, ``op_count`` (B,)."""
    count = op_count[site_crystal]
    site = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    first = torch.cumsum(count, 0) - count
    op = torch.arange(len(site), device=count.device) - first[site] + op_start[site_crystal][site]
    return SitePairs(site, op)


class Snapped(NamedTuple):
    """Sites moved to the special positions they surround."""

    frac: Tensor  #: (A, 3) exact to rounding, not wrapped
    displacement: Tensor  #: (A, 3) Cartesian, from the snapped to the given position [Å]
    projector: Tensor  #: (A, 3, 3) Cartesian projector onto free directions; ``v @ projector``
    stabiliser_order: Tensor  #: (A,) operations that leave the snapped site in place


def snap_arrays(
    crystals: CrystalArrays, operations: Operations, radius: Tensor | None = None
) -> Snapped | None:
    """:func:`snap_sites` on the host, in one pass; None without the C++ extension."""
    try:
        from langevin_xtal.graph import _multigraph
    except ImportError:
        return None
    found = _multigraph.snap_sites(
        *crystals.in_order(),
        inverse=operations.inverse.numpy(),
        fixed=operations.fixed.numpy(),
        radius=np.empty(0) if radius is None else radius.numpy(),
        identical=IDENTICAL,
    )
    return Snapped(**{name: torch.from_numpy(array) for name, array in found.items()})


def snap_sites(
    frac: Tensor,
    lattice: Tensor,
    site_crystal: Tensor,
    pairs: SitePairs,
    operations: Operations,
    radius: Tensor | None = None,
) -> Snapped:
    """Move every site to the most special position within its radius.

    Parameters
    ----------
    frac
        (A, 3) fractional coordinates, float64.
    lattice
        (B, 3, 3) rows [Å], float64.
    radius
        (A,) largest displacement of each site [Å]; None only removes rounding, as 0 does.
    """
    cell = lattice[site_crystal]  # (A, 3, 3)
    frame = torch.linalg.inv_ex(cell)[0]  # inv would wait for the device
    w, t = operations.rotations[pairs.op], operations.translations[pairs.op]
    pair_cell = cell[pairs.site]
    current = frac
    if radius is not None:
        current = _nearest_special(frac, cell, frame, pairs, operations, radius)
    u = _displacements(current, w, t, pairs.site)
    stays = (_length(u, pair_cell) < IDENTICAL).to(frac.dtype)
    order = torch.zeros_like(frac[:, 0]).index_add(0, pairs.site, stays)
    mean = torch.zeros_like(frac).index_add(0, pairs.site, u * stays[:, None])
    turn = torch.zeros_like(cell).index_add(0, pairs.site, w * stays[:, None, None])
    current = current + mean / order[:, None]
    turn = turn / order[:, None, None]
    return Snapped(
        frac=current,
        displacement=((frac - current).unsqueeze(1) @ cell).squeeze(1),
        projector=frame @ turn.transpose(1, 2) @ cell,
        stabiliser_order=order.round().long(),
    )


def _nearest_special(
    frac: Tensor,
    cell: Tensor,
    frame: Tensor,
    pairs: SitePairs,
    operations: Operations,
    radius: Tensor,
) -> Tensor:
    """(A, 3) the most special positions within ``radius`` (A,) of sites in ``cell`` (A, 3, 3)."""
    n = len(frac)
    w, t = operations.rotations[pairs.op], operations.translations[pairs.op]
    pair_cell = cell[pairs.site]
    inverse, fixed = operations.inverse[pairs.op], operations.fixed[pairs.op]
    eye = torch.eye(3, dtype=frac.dtype, device=frac.device)
    index = torch.arange(len(pairs.site), device=frac.device)
    # a site already on a special position stays on it: begin with what its stabiliser forbids
    normal = eye - _mean_rotation(_displacements(frac, w, t, pairs.site), w, cell, frame, pairs)
    current, moving = frac, torch.ones(n, dtype=torch.bool, device=frac.device)
    inf = torch.full((n,), torch.inf, dtype=frac.dtype, device=frac.device)
    none = torch.full((n,), len(index), device=frac.device)
    for _ in range(3):
        u = _displacements(current, w, t, pairs.site)
        v = -_apply(inverse, u)
        distance = _length(v, pair_cell)
        usable = (_length(_apply(fixed, u), pair_cell) < IDENTICAL) & (
            _length(u, pair_cell) > IDENTICAL
        )
        distance = torch.where(usable, distance, torch.inf)
        nearest = inf.scatter_reduce(0, pairs.site, distance, "amin")
        moving = moving & (nearest <= radius)
        is_nearest = usable & (distance == nearest[pairs.site])
        pick = none.scatter_reduce(
            0, pairs.site, torch.where(is_nearest, index, len(index)), "amin"
        ).clamp(max=len(index) - 1)
        # least-squares step onto the fixed spaces of all operations entered so far
        block = cell.transpose(1, 2) @ (w[pick] - eye) @ frame.transpose(1, 2)
        wanted = -(u[pick].unsqueeze(1) @ cell).squeeze(1)
        grown = normal + block.transpose(1, 2) @ block
        right = _apply(block.transpose(1, 2), wanted)
        step = torch.linalg.solve_ex(grown + 1e-6 * eye, right)[0]
        miss = (_apply(block, step) - wanted).abs().amax(1) + _apply(normal, step).abs().amax(1)
        trial = current + (step.unsqueeze(1) @ frame).squeeze(1)
        moving = moving & (miss < IDENTICAL) & (_length(trial - frac, cell) <= radius)
        current = torch.where(moving[:, None], trial, current)
        normal = torch.where(moving[:, None, None], grown, normal)
    return current


def _mean_rotation(u: Tensor, w: Tensor, cell: Tensor, frame: Tensor, pairs: SitePairs) -> Tensor:
    """(A, 3, 3) Cartesian projectors, on columns, of sites with image displacements (P, 3)."""
    stays = (_length(u, cell[pairs.site]) < IDENTICAL).to(u.dtype)
    order = torch.zeros_like(cell[:, 0, 0]).index_add(0, pairs.site, stays)
    turn = torch.zeros_like(cell).index_add(0, pairs.site, w * stays[:, None, None])
    return cell.transpose(1, 2) @ (turn / order[:, None, None]) @ frame.transpose(1, 2)


def _displacements(points: Tensor, w: Tensor, t: Tensor, site: Tensor) -> Tensor:
    """(P, 3) fractional vectors from each pair's site to its nearest image."""
    x = points[site]
    u = _apply(w, x) + t - x
    return u - u.round()


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _length(frac: Tensor, cell: Tensor) -> Tensor:
    return torch.linalg.vector_norm((frac.unsqueeze(1) @ cell).squeeze(1), dim=1)
