"""From two numbers per edge to noise predictions for positions and lattice (paper, section 4).

The network predicts **noise**: positions were moved by σ ε, lattice coordinates by σ_L ε_L, and
the score of either is −ε/σ.

Position of site i (paper, section 4.2)::

    ε_i = Σ_e w_e d_e / |d_e|        over the edges leaving i; self-images times tanh(|d_e| / σ),

so that a vanishing displacement from a special position is restored linearly.

Lattice (paper, section 4.3): the second output is the change of edge length, Δd_e, per unit of
noise. With ``G_e = ∂|d_e| / ∂ℓ`` over the six lattice coordinates (three lengths, as in the
paper, and three angles, see :mod:`langevin_xtal.symmetry.lattice`), either the mean of
minimum-norm solutions, as in the paper::

    Δℓ = mean_e Δd_e G_e / |G_e|²,

which is biased low (more so here: outputs carry the envelope, the count does not), or the weighted
least-squares solution of Σ G_e G_eᵀ Δℓ = Σ G_e Δd_e. Both sums run over the atoms of the cell: an
edge counts once for every image of its source.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from langevin_xtal.config.sampling import LatticeEstimate, SamplingConfig
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.model.network import edge_weight
from langevin_xtal.symmetry.lattice import ANGLE_LENGTH, COORDINATES, SOFTPLUS_LENGTH

RIDGE = 1e-4
"""Relative ridge of the least-squares lattice estimate: keeps undetermined directions at zero."""


def cell_length(coordinates: Tensor) -> Tensor:
    """φ(ℓ), the cell length [Å] of a lattice coordinate, any shape.

    Spelled out with exp and log1p: torch's fused softplus rounds differently at the end of an
    array, and a candidate must not depend on its place in the batch. The same goes for the slope.
    """
    return SOFTPLUS_LENGTH * torch.log1p(torch.exp(coordinates / SOFTPLUS_LENGTH))


def length_slope(coordinates: Tensor) -> Tensor:
    """φ'(ℓ) = da/dℓ, any shape."""
    return 1.0 / (1.0 + torch.exp(-coordinates / SOFTPLUS_LENGTH))


def angle_cosine_sine(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """cos θ = −tanh(u/k) and sin θ = 1/cosh(u/k) of angle coordinates u, any shape."""
    e = torch.exp(coordinates / ANGLE_LENGTH)
    total = 1.0 + e * e
    return (1.0 - e) * (1.0 + e) / total, 2.0 * e / total


class CellFrame(NamedTuple):
    """Cells and how they change with their coordinates."""

    rows: Tensor  #: (B, 3, 3) rows a, b, c [Å]
    tangent: Tensor  #: (B, 6, 3) change of row ``TANGENT_ROW[k]`` per unit of coordinate k


TANGENT_ROW = (0, 1, 2, 1, 2, 2)
"""The row of the cell that moves with ℓ_a, ℓ_b, ℓ_c, u_γ, u_β and u_ω."""


def cell_frame(coordinates: Tensor) -> CellFrame:
    """Cells of (B, 6) lattice coordinates and their derivatives, closed form."""
    length, slope = cell_length(coordinates[:, :3]), length_slope(coordinates[:, :3])
    cosine, sine = angle_cosine_sine(coordinates[:, 3:])
    (cg, cb, cw), (sg, sb, sw) = cosine.unbind(1), sine.unbind(1)
    zero, one = torch.zeros_like(cg), torch.ones_like(cg)
    unit = [torch.stack(v, 1) for v in ((one, zero, zero), (cg, sg, zero), (cb, sb * cw, sb * sw))]
    # dθ/du = sin θ / k
    turn = [
        (length[:, 1] * sg).unsqueeze(1) * torch.stack([-sg, cg, zero], 1),
        (length[:, 2] * sb).unsqueeze(1) * torch.stack([-sb, cb * cw, cb * sw], 1),
        (length[:, 2] * sw * sb).unsqueeze(1) * torch.stack([zero, -sw, cw], 1),
    ]
    rows = length.unsqueeze(2) * torch.stack(unit, 1)
    stretch = slope.unsqueeze(2) * torch.stack(unit, 1)
    return CellFrame(rows, torch.cat([stretch, torch.stack(turn, 1) / ANGLE_LENGTH], 1))


def position_noise(g: GraphBatch, edge_output: Tensor, sigma_pos: Tensor) -> Tensor:
    """(A, 3) predicted Cartesian position noise in units of σ, from (E, 2) edge outputs."""
    sigma = sigma_pos[g.site_crystal[g.source]]
    unit = g.vec / g.dist.clamp(min=1e-6).unsqueeze(1)
    near = torch.where(g.is_self_image, torch.tanh(g.dist / sigma.clamp(min=1e-6)), 1.0)
    pulls = -(edge_output[:, 0] * near).unsqueeze(1) * unit
    total = pulls.new_zeros(len(g.numbers), 3)
    return total.index_add(0, g.source, pulls)


def length_gradients(g: GraphBatch, coordinates: Tensor, driver: Tensor) -> Tensor:
    """(E, 6) G_e = ∂|d_e| / ∂ℓ over the free coordinates, closed form.

    Parameters
    ----------
    coordinates
        (B, 6) lattice coordinates.
    driver
        (B, 6) index of the free coordinate that drives each of them.
    """
    crystal = g.site_crystal[g.source]
    unit = g.vec / g.dist.clamp(min=1e-6).unsqueeze(1)
    along = (cell_frame(coordinates).tangent[crystal] * unit.unsqueeze(1)).sum(2)
    # columns 0, 1, 2, 1, 2, 2, as TANGENT_ROW says; a list of them would be copied to the device
    each = along * torch.cat([g.frac, g.frac[:, 1:], g.frac[:, 2:]], dim=1)
    return torch.zeros_like(each).scatter_add(1, driver[crystal], each)


def lattice_noise(
    g: GraphBatch,
    edge_output: Tensor,
    coordinates: Tensor,
    driver: Tensor,
    free: Tensor,
    estimate: LatticeEstimate = SamplingConfig.lattice_estimate,
) -> Tensor:
    """(B, 6) predicted noise of the lattice coordinates in units of σ_L; 0 where not ``free``.

    The second edge output is dimensionless: times the edge length and the mean relative change of
    the cell lengths per unit ℓ it is Δd_e per unit noise [Å].
    """
    crystal = g.site_crystal[g.source]
    gradient = length_gradients(g, coordinates, driver) * free[crystal]
    lengths = coordinates[:, :3]
    strain = (length_slope(lengths) / cell_length(lengths)).mean(1)
    change = edge_output[:, 1] * g.dist * strain[crystal]
    used = (~g.is_snap & (g.dist > 1e-3)) * g.multiplicity[g.source]
    n = len(coordinates)
    if estimate == "mean":
        norm = (gradient * gradient).sum(1)
        each = change.unsqueeze(1) * gradient / norm.clamp(min=1e-6).unsqueeze(1)
        each = each * used.unsqueeze(1)
        count = gradient.new_zeros(n).index_add(0, crystal, used)
        total = gradient.new_zeros(n, COORDINATES).index_add(0, crystal, each)
        return total / count.clamp(min=1.0).unsqueeze(1)
    weight = (edge_weight(g) * used).unsqueeze(1)
    outer = (weight * gradient).unsqueeze(2) * gradient.unsqueeze(1)
    normal = gradient.new_zeros(n, COORDINATES, COORDINATES).index_add(0, crystal, outer)
    # the envelope is already in the edge output
    right = (change * used).unsqueeze(1) * gradient
    right = gradient.new_zeros(n, COORDINATES).index_add(0, crystal, right)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal.sum(1, keepdim=True) + (diagonal == 0)
    # solve_ex: on a GPU solve waits to see whether it went well; the ridge keeps it from failing
    return torch.linalg.solve_ex(normal + torch.diag_embed(ridge), right).result
