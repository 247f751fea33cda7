"""What the network should predict: the noise, plain or averaged over equivalent images.

A site noised by σ may be nearer to another image of its orbit than to the one it came from; both
describe the same crystal. The density of the noised orbit is

    p(x̃) ∝ Σ_{h, n} exp(−|x̃ − h(x) − n|² / 2σ²),

and its score is the responsibility-weighted mean of −(x̃ − h(x) − n)/σ². The orbit target is −σ
times it; the plain target, (x̃ − x)/σ, has the same mean and more variance.

Sums over lattice vectors factorise where the cell is rectangular; a hexagonal cell is rectangular
after a doubling. Other cells, and sites confined to a line or a plane, sum over a box of lattice
vectors: exact to 5e-4 (in units of σ) up to σ = 1.5 Å, and to 1e-2 at 2 Å in thin oblique cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from langevin_xtal.graph.contract import CrystalArrays
from langevin_xtal.graph.snapping import Operations, SitePairs
from langevin_xtal.symmetry.sites import IDENTICAL

AXIS_IMAGES = 4
"""Lattice vectors summed on either side of the nearest one, along each axis."""

BOX_IMAGES = 2
"""The same in each of three directions, for cells that are not rectangular and confined sites."""

UNREACHED = -1e30
"""Log weight of an image that noise cannot reach."""


def orbit_noise_of_arrays(
    crystals: CrystalArrays, noised: Tensor, sigma: Tensor, confined: Tensor, projector: Tensor
) -> Tensor | None:
    """:func:`orbit_noise` of clean ``crystals`` on the host; None without the C++ extension."""
    try:
        from langevin_xtal.graph import _multigraph
    except ImportError:
        return None
    found = _multigraph.orbit_noise(
        *crystals.in_order(),
        noised=noised.numpy(),
        sigma=sigma.numpy(),
        confined=confined.numpy(),
        projector=projector.numpy(),
        axis_images=AXIS_IMAGES,
        box_images=BOX_IMAGES,
        identical=IDENTICAL,
        unreached=UNREACHED,
    )
    return torch.from_numpy(found)


def orbit_noise(
    noised: Tensor,
    clean: Tensor,
    lattice: Tensor,
    site_crystal: Tensor,
    sigma: Tensor,
    pairs: SitePairs,
    operations: Operations,
    confined: Tensor,
    projector: Tensor,
) -> Tensor:
    """Responsibility-weighted noise of every site.

    Parameters
    ----------
    noised, clean
        (A, 3) fractional coordinates x̃ and x, float64.
    lattice
        (B, 3, 3) rows [Å]: the noised cell, in whose metric the noise is isotropic.
    sigma
        (B,) position noise [Å].
    pairs
        The images to sum over: all (site, operation) pairs, or each image once.
    confined
        (A,) bool: sites noised only along the free directions of their Wyckoff position; images
        that such noise cannot reach do not count.
    projector
        (A, 3, 3) Cartesian projectors onto those directions.

    Returns
    -------
    Tensor
        (A, 3) Cartesian, in units of σ; −σ² times the score of the orbit density, over σ.
    """
    cell = lattice[site_crystal]
    scale = sigma[site_crystal]
    w, t = operations.rotations[pairs.op], operations.translations[pairs.op]
    image = (w @ clean[pairs.site].unsqueeze(-1)).squeeze(-1) + t
    delta = noised[pairs.site] - image
    delta = delta - delta.round()  # (P, 3) fractional, from the nearest lattice copy
    log_weight = torch.zeros_like(delta[:, 0])
    mean = torch.zeros_like(delta)  # as it stays for sites that cannot move
    freedom = projector.diagonal(dim1=1, dim2=2).sum(1).round().long()
    bound = confined & (freedom < 3)
    kind = torch.where(bound, 3, _cell_kind(lattice)[site_crystal])
    kind = torch.where(bound & (freedom == 0), 4, kind)[pairs.site]
    # one question to the device instead of one for every kind
    sizes = (kind.unsqueeze(1) == torch.arange(5, device=kind.device)).sum(0).tolist()
    *parts, on_subspace, _ = torch.argsort(kind, stable=True).split(sizes)
    for own, summed in zip(parts, (_along_axes, _hexagonal, _general), strict=True):
        if len(own):
            site = pairs.site[own]
            log_weight[own], mean[own] = summed(delta[own], cell[site], scale[site])
    if len(on_subspace):
        own = on_subspace
        log_weight[own], mean[own] = _confined(delta[own], pairs.site[own], cell, scale, projector)
    top = torch.full_like(scale, -torch.inf).scatter_reduce(0, pairs.site, log_weight, "amax")
    weight = (log_weight - top[pairs.site]).exp()
    total = torch.zeros_like(scale).index_add(0, pairs.site, weight)
    average = torch.zeros_like(noised).index_add(0, pairs.site, weight.unsqueeze(1) * mean)
    return average / (total * scale).unsqueeze(1)


def _cell_kind(lattice: Tensor) -> Tensor:
    """(B,) 0 rectangular, 1 hexagonal with c along z, 2 anything else."""
    gram = lattice @ lattice.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2)
    ab, ac, bc = gram[:, 0, 1], gram[:, 0, 2], gram[:, 1, 2]
    tiny = 1e-9 * size.amax(1)
    upright = (ac.abs() < tiny) & (bc.abs() < tiny)
    rectangular = upright & (ab.abs() < tiny)
    hexagonal = upright & ((ab + 0.5 * size[:, 0]).abs() < tiny)
    hexagonal &= (size[:, 0] - size[:, 1]).abs() < tiny
    return torch.where(rectangular, 0, torch.where(hexagonal, 1, 2))


def _along_axes(delta: Tensor, axes: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum over lattice vectors, and the mean vector, for orthogonal rows ``axes``."""
    length = torch.linalg.vector_norm(axes, dim=2)  # (P, 3)
    steps = torch.arange(-AXIS_IMAGES, AXIS_IMAGES + 1, dtype=delta.dtype, device=delta.device)
    reach = (delta.unsqueeze(2) - steps) * length.unsqueeze(2)  # (P, 3, S) signed distance [Å]
    log_each = -0.5 * (reach / sigma.view(-1, 1, 1)) ** 2
    log_axis = torch.logsumexp(log_each, dim=2)
    mean_axis = ((log_each - log_axis.unsqueeze(2)).exp() * reach).sum(2)
    # σ above one period: uniform to 1e-8, which the truncated sum would not show
    mean_axis = torch.where(sigma.unsqueeze(1) > length, 0.0, mean_axis)
    unit = axes / length.unsqueeze(2)
    return log_axis.sum(1), (mean_axis.unsqueeze(1) @ unit).squeeze(1)


def _hexagonal(delta: Tensor, cell: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Rows a, a + 2b, c span a rectangular cell with two lattice points: 0 and a + b."""
    a, b, c = cell.unbind(1)
    axes = torch.stack([a, a + 2 * b, c], dim=1)
    parts = []
    for copy in (0.0, 1.0):
        u, v, z = delta[:, 0] + copy, delta[:, 1] + copy, delta[:, 2]
        # u a + v b = (u − v/2) a + (v/2) (a + 2b)
        own = torch.stack([u - 0.5 * v, 0.5 * v, z], dim=1)
        parts.append(_along_axes(own - own.round(), axes, sigma))
    return _mixture(
        torch.stack([p[0] for p in parts], dim=1), torch.stack([p[1] for p in parts], dim=1)
    )


def _general(delta: Tensor, cell: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Over a box of lattice vectors."""
    cart = (delta.unsqueeze(1) - _box(delta)) @ cell  # (P, S, 3)
    log_each = -0.5 * (cart / sigma.view(-1, 1, 1)).square().sum(2)
    log_total, mean = _mixture(log_each, cart)
    longest = torch.linalg.vector_norm(cell, dim=2).amax(1)
    return log_total, torch.where((sigma > longest).unsqueeze(1), 0.0, mean)


def _confined(
    delta: Tensor, site: Tensor, cell: Tensor, sigma: Tensor, projector: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, of the few images in the free subspace of the sites (P,) of the pairs.

    ``cell``, ``sigma`` and ``projector`` are of all sites.
    """
    box = _box(delta)
    across = cell @ (torch.eye(3, dtype=cell.dtype, device=cell.device) - projector)
    metric = across @ across.transpose(1, 2)  # (A, 3, 3) of what lies across the subspace
    inner = delta.unsqueeze(1) @ metric[site]
    square = ((box @ metric) * box).sum(2)
    # |δ − s|² across it, for all lattice vectors s
    off = (inner @ delta.unsqueeze(2)).squeeze(2) - 2 * (inner.squeeze(1) @ box.T) + square[site]
    pair, step = (off <= IDENTICAL**2).nonzero(as_tuple=True)
    cart = ((delta[pair] - box[step]).unsqueeze(1) @ cell[site[pair]]).squeeze(1)
    log_each = -0.5 * (cart / sigma[site[pair]].unsqueeze(1)).square().sum(1)
    none = torch.full_like(delta[:, 0], UNREACHED)
    top = none.scatter_reduce(0, pair, log_each, "amax")
    share = (log_each - top[pair]).exp()
    total = torch.zeros_like(none).index_add(0, pair, share).clamp(min=1.0)
    mean = torch.zeros_like(delta).index_add(0, pair, share.unsqueeze(1) * cart)
    longest = torch.linalg.vector_norm(cell, dim=2).amax(1)
    uniform = (sigma > longest)[site].unsqueeze(1)
    return top + total.log(), torch.where(uniform, 0.0, mean / total.unsqueeze(1))


def _box(like: Tensor) -> Tensor:
    """(S, 3) lattice vectors around the origin, as fractions."""
    one = torch.arange(-BOX_IMAGES, BOX_IMAGES + 1, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(one, one, one)


def _mixture(log_weight: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.logsumexp(log_weight, dim=1)
    share = (log_weight - total.unsqueeze(1)).exp()
    return total, (share.unsqueeze(2) * mean).sum(1)
