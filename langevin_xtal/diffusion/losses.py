"""Denoising score matching losses, weighted by σ² (paper, eq. 5 and 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from langevin_xtal.diffusion.noising import Noised
from langevin_xtal.model.network import EdgeNetwork
from langevin_xtal.model.scores import LatticeEstimate, lattice_noise, position_noise


class Losses(NamedTuple):
    """Mean squared error of the predicted noise; 1 for a network that predicts nothing."""

    position: Tensor  #: (B,) mean over sites and directions
    lattice: Tensor  #: (B,) mean over free coordinates; 0 where the lattice is clean
    lattice_used: Tensor  #: (B,) bool

    def total(self, lattice_weight: float = 1.0) -> Tensor:
        """Scalar: mean position loss plus the weighted mean lattice loss."""
        count = self.lattice_used.sum().clamp(min=1)
        return self.position.mean() + lattice_weight * self.lattice.sum() / count


def denoising_losses(
    network: EdgeNetwork, noised: Noised, estimate: LatticeEstimate = "least_squares"
) -> Losses:
    """Losses of every crystal of a noised batch.

    The σ² weight of the score's squared error makes this the squared error of the unit noise.
    """
    g = noised.graph
    output = network(g, noised.sigma_pos, noised.sigma_lat)
    n = len(noised.sigma_pos)
    error = (position_noise(g, output, noised.sigma_pos) - noised.position_target).square().mean(1)
    sites = torch.bincount(g.site_crystal, minlength=n).to(error.dtype)
    position = error.new_zeros(n).index_add(0, g.site_crystal, error) / sites
    predicted = lattice_noise(
        g, output, noised.coordinates, noised.driver, noised.lattice_used, estimate
    )
    wrong = (predicted - noised.lattice_target).square() * noised.lattice_used
    free = noised.lattice_used.sum(1)
    return Losses(position, wrong.sum(1) / free.clamp(min=1), free > 0)
