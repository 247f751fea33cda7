"""An equivariant network: from a crystal to a displacement of its atoms and a change of its cell.

Messages along edges depend on distances alone. The displacement of an atom is a sum of its edges'
directions, and the change of the cell a sum of their outer products, each times a number that the
message gives. So with a rotation R of the crystal, displacements turn with it and the change
becomes R X Rᵀ; a shift of the origin and another choice of the cell's vectors alter neither, as
the edges are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from langevin_xtal.baselines.neighbours import NeighbourGraph
from langevin_xtal.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VectorFieldConfig:
    """Size of the network."""

    width: int = 96
    layers: int = 3
    neighbours: int = 14
    """Edges of each atom."""
    waves: int = 20
    """Functions of the distance."""
    reach: float = 8.0
    """Distance up to which the functions are spread [Å]."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.neighbours, self.waves) < 1 or self.width % 2:
            raise InputError("a vector field needs an even width and at least one of everything")


class _Layer(nn.Module):
    """One round of messages."""

    def __init__(self, config: VectorFieldConfig) -> None:
        super().__init__()
        width = config.width
        self.target = nn.Linear(width, width)
        self.source = nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(config.waves, width, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.update = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, state: Tensor, waves: Tensor, weight: Tensor, src: Tensor, dst: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, W) states and (E, W) messages."""
        held = self.norm(state)
        mixed = self.target(held)[dst] + self.source(held)[src] + self.distance(waves)
        message = self.message(mixed)
        summed = torch.zeros_like(state).index_add_(0, dst, message * weight[:, None])
        change = self.update(torch.cat([held, summed / math.sqrt(len(src) / len(state))], dim=1))
        return state + change, message


class VectorField(nn.Module):
    """Displacements and changes of the cell, given the step of the diffusion."""

    def __init__(self, config: VectorFieldConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.element = nn.Embedding(119, width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.place = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.shape = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.volume = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        for head in (self.place, self.shape, self.volume):
            last = head[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, graph: NeighbourGraph, numbers: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fields of B crystals with N atoms.

        Parameters
        ----------
        numbers
            (N,) atomic numbers.
        time
            (B,) share of the diffusion that is done.

        Returns
        -------
        tuple
            (N, 3) displacements [Å], and (B, 3, 3) symmetric matrices.
        """
        vector = torch.as_tensor(graph.vector, dtype=torch.get_default_dtype())
        weight = torch.as_tensor(graph.weight, dtype=vector.dtype)
        src, dst = torch.from_numpy(graph.src), torch.from_numpy(graph.dst)
        crystal = torch.from_numpy(graph.crystal)
        length = vector.norm(dim=1).clamp(min=1e-6)
        direction = vector / length[:, None]
        waves = self._waves(length)
        state = self.element(numbers) + self._clock(time)[crystal]
        message = waves
        for layer in self.layers:
            state, message = layer(state, waves, weight, src, dst)
        pushes = self.place(message) * weight[:, None] * direction
        moved = torch.zeros(len(numbers), 3, dtype=vector.dtype).index_add_(0, dst, pushes)
        outer = direction[:, :, None] * direction[:, None, :]
        outer = outer - torch.eye(3, dtype=vector.dtype) / 3
        pulls = (self.shape(message) * weight[:, None])[:, :, None] * outer
        atoms = torch.bincount(crystal, minlength=len(time)).to(vector.dtype)
        shape = torch.zeros(len(time), 3, 3, dtype=vector.dtype)
        shape = shape.index_add_(0, crystal[dst], pulls) / atoms[:, None, None]
        pooled = torch.zeros(len(time), state.shape[1], dtype=vector.dtype)
        pooled = pooled.index_add_(0, crystal, state) / atoms[:, None]
        volume = self.volume(pooled)[:, :, None] * torch.eye(3, dtype=vector.dtype)
        return moved, shape + volume / math.sqrt(3)

    def _waves(self, length: Tensor) -> Tensor:
        """(E, G) bumps along the distance."""
        config = self.config
        centres = torch.linspace(0.0, config.reach, config.waves, dtype=length.dtype)
        spacing = config.reach / max(1, config.waves - 1)
        return torch.exp(-(((length[:, None] - centres) / (1.5 * spacing)) ** 2))

    def _clock(self, time: Tensor) -> Tensor:
        """(B, W) sines and cosines of the diffusion step."""
        half = self.config.width // 2
        rates = torch.exp(-math.log(1e4) * torch.arange(half, dtype=time.dtype) / half)
        angle = 100.0 * time[:, None] * rates
        return torch.cat([angle.sin(), angle.cos()], dim=1)
