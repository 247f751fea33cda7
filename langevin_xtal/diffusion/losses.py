"""Denoising score matching losses, weighted by σ² (paper, eq. 5 and 6)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from langevin_xtal.config.sampling import LatticeEstimate
from langevin_xtal.config.training import Precision, TrainingConfig
from langevin_xtal.diffusion.noising import Noised
from langevin_xtal.model.network import EdgeNetwork
from langevin_xtal.model.scores import lattice_noise, position_noise


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
    network: EdgeNetwork,
    noised: Noised,
    estimate: LatticeEstimate = TrainingConfig.lattice_estimate,
    precision: Precision = TrainingConfig.precision,
) -> Losses:
    """Losses of every crystal of a noised batch.

    The σ² weight of the score's squared error makes this the squared error of the unit noise.
    With ``precision`` ``bf16`` the matrix products of the network round their factors to 7 bits,
    by autocast; distances, bases and losses do not. ``tf32`` rounds them to 10 (CUDA only).
    """
    g = noised.graph
    device = noised.sigma_pos.device.type
    with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
        output = network(g, noised.sigma_pos, noised.sigma_lat).to(noised.sigma_pos.dtype)
    n = len(noised.sigma_pos)
    error = (position_noise(g, output, noised.sigma_pos) - noised.position_target).square().mean(1)
    # not bincount, for which a GPU asks the host how many there are
    sites = error.new_zeros(n).index_add(0, g.site_crystal, torch.ones_like(error))
    position = error.new_zeros(n).index_add(0, g.site_crystal, error) / sites
    predicted = lattice_noise(
        g, output, noised.coordinates, noised.driver, noised.lattice_used, estimate
    )
    wrong = (predicted - noised.lattice_target).square() * noised.lattice_used
    free = noised.lattice_used.sum(1)
    return Losses(position, wrong.sum(1) / free.clamp(min=1), free > 0)
