"""Noise levels: geometric, for positions [Å] and lattice coordinates ℓ side by side.

The network is conditioned on log σ continuously, so a schedule can change after training. Position
τ ∈ [0, 1] on the schedule gives σ(τ) = σ_max (σ_min / σ_max)^τ for both processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from langevin_xtal.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """Ranges of the noise."""

    position_max: float = 2.0
    """Largest position noise [Å]; beyond it every crystal of the data is uniform."""
    position_min: float = 0.03
    """Smallest position noise [Å]."""
    lattice_max: float = 6.0
    """Largest noise of the lattice coordinates ℓ [Å]."""
    lattice_min: float = 0.2
    """Smallest noise of the lattice coordinates ℓ [Å]."""

    def __post_init__(self) -> None:
        for kind in ("position", "lattice"):
            low, high = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
            if not 0.0 < low <= high < math.inf:
                raise InputError(
                    f"{kind} noise runs from {high} to {low} Å; both must be positive and finite, "
                    "the largest first"
                )

    @classmethod
    def paper(cls) -> NoiseLevels:
        """Variances 36 to 0.001 Å² for positions, 36 to 0.1 for ℓ (Sultanov et al. 2023, code)."""
        return cls(
            position_max=6.0, position_min=0.001**0.5, lattice_max=6.0, lattice_min=0.1**0.5
        )

    def position(self, tau: Tensor) -> Tensor:
        """σ of positions [Å] at τ, any shape."""
        return self.position_max * (self.position_min / self.position_max) ** tau

    def lattice(self, tau: Tensor) -> Tensor:
        """σ of lattice coordinates [Å] at τ, any shape."""
        return self.lattice_max * (self.lattice_min / self.lattice_max) ** tau

    def place(self, sigma: float) -> float:
        """τ of a position noise [Å], held within the schedule."""
        if sigma >= self.position_max:
            return 0.0
        if sigma <= self.position_min:
            return 1.0
        return math.log(sigma / self.position_max) / math.log(
            self.position_min / self.position_max
        )

    def grid(self, count: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """``count`` levels from τ = ``start`` (B,) to 1: (count, B) positions and lattice."""
        share = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=start.device)
        tau = start + (1.0 - start) * share.unsqueeze(1)
        return self.position(tau), self.lattice(tau)
