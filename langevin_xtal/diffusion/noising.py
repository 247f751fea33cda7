"""Noising a batch of crystals for denoising score matching (paper, section 3.1 and 4).

One draw serves both processes: lattice coordinates get noise σ_L, the fractional coordinates stay
as the cell deforms, and Cartesian position noise σ is added in the deformed cell. A lattice left
clean (σ_L = 0) is the paper's position objective. A share of the crystals is noised **confined**:
each site moves only along the free directions of its Wyckoff position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.diffusion.targets import orbit_noise
from langevin_xtal.graph.batch import GraphBatch, make_batch, snap_radius
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.graph.snapping import Operations, SitePairs, site_pairs, snap_sites
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.scores import cell_length

Target = Literal["orbit", "plain"]


@dataclass(frozen=True, kw_only=True)
class NoisingConfig:
    """How crystals are noised in training."""

    target: Target = "orbit"
    """``orbit``: mean over equivalent images; ``plain``: as in the paper."""
    clean_lattice: float = 0.2
    """Share of crystals whose lattice stays clean."""
    confined: float = 0.6
    """Share of crystals whose sites stay on their Wyckoff positions."""
    decoupling: float = 0.15
    """Standard deviation of τ of the lattice around τ of the positions."""


@dataclass(frozen=True)
class Crystals:
    """Clean crystals of one batch on a device, float64: B crystals, A sites."""

    numbers: Tensor  #: (A,) atomic numbers
    frac: Tensor  #: (A, 3), exactly on their special positions
    site_start: Tensor  #: (B + 1,)
    directions: Tensor  #: (B, 3, 3) unit row vectors of the cell
    coordinates: Tensor  #: (B, 3) lattice coordinates ℓ of a, b and c
    axis: Tensor  #: (B, 3) free coordinate that drives a, b and c
    fixed_angles: Tensor  #: (B,) bool: groups 16 to 230, whose lattices are learned
    op_start: Tensor  #: (B,)
    op_count: Tensor  #: (B,)

    @property
    def site_crystal(self) -> Tensor:
        """(A,) crystal of each site."""
        counts = self.site_start.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


@dataclass(frozen=True)
class Noised:
    """A noised batch and what the network should say about it."""

    graph: GraphBatch
    sigma_pos: Tensor  #: (B,) [Å]
    sigma_lat: Tensor  #: (B,) 0 where the lattice is clean
    tau_pos: Tensor  #: (B,) place of the position noise on the schedule
    tau_lat: Tensor  #: (B,) place of the lattice noise
    coordinates: Tensor  #: (B, 3) noised lattice coordinates
    axis: Tensor  #: (B, 3)
    position_target: Tensor  #: (A, 3) in units of σ
    lattice_target: Tensor  #: (B, 3) in units of σ_L, 0 for unused coordinates
    lattice_used: Tensor  #: (B, 3) bool: free coordinates of noised lattices


def lattice_of(coordinates: Tensor, directions: Tensor) -> Tensor:
    """(B, 3, 3) rows [Å] from lattice coordinates (B, 3) and unit rows (B, 3, 3)."""
    return cell_length(coordinates).unsqueeze(2) * directions


def crystal_arrays(
    frac: Tensor, lattice: Tensor, crystals: Crystals, operations: Operations
) -> CrystalArrays:
    """What the builders read."""
    return CrystalArrays(
        lattice=lattice.numpy(),
        frac=np.ascontiguousarray(frac.numpy()),
        site_start=crystals.site_start.numpy(),
        rotations=_integer_rotations(operations),
        translations=operations.translations.numpy(),
        op_start=crystals.op_start.numpy(),
        op_count=crystals.op_count.numpy(),
        orbit=np.arange(len(frac)),
    )


def _integer_rotations(operations: Operations) -> np.ndarray:
    return operations.rotations.numpy().astype(np.int64)


def noise_batch(
    crystals: Crystals,
    levels: NoiseLevels,
    config: NoisingConfig,
    settings: GraphSettings,
    operations: Operations,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Noised:
    """Noise every crystal at a random level and build the multigraph the network sees."""
    site_crystal = crystals.site_crystal
    n_crystals, n_sites = len(crystals.coordinates), len(crystals.frac)
    pairs = site_pairs(site_crystal, crystals.op_start, crystals.op_count)

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # stratified over the batch: every batch sees the whole schedule
    tau = (torch.randperm(n_crystals, generator=generator) + uniform(n_crystals)) / n_crystals
    sigma_pos = levels.position(tau)
    tau_lat = (tau + config.decoupling * normal(n_crystals)).clamp(0.0, 1.0)
    noisy = crystals.fixed_angles & (uniform(n_crystals) >= config.clean_lattice)
    sigma_lat = torch.where(noisy, levels.lattice(tau_lat), 0.0)

    lattice_target = normal(n_crystals, 3) * free_coordinates(crystals.axis) * noisy.unsqueeze(1)
    shift = (sigma_lat.unsqueeze(1) * lattice_target).gather(1, crystals.axis)
    coordinates = crystals.coordinates + shift
    lattice = lattice_of(coordinates, crystals.directions)

    noise = normal(n_sites, 3)
    home = snap_sites(
        crystals.frac, lattice, site_crystal, pairs, operations, torch.zeros(n_sites)
    )
    confined = (uniform(n_crystals) < config.confined)[site_crystal]
    inside = (noise.unsqueeze(1) @ home.projector).squeeze(1)
    noise = torch.where(confined.unsqueeze(1), inside, noise)
    cart = sigma_pos[site_crystal].unsqueeze(1) * noise
    frame = torch.linalg.inv(lattice)[site_crystal]
    noised = home.frac + (cart.unsqueeze(1) @ frame).squeeze(1)
    target = noise
    if config.target == "orbit":
        target = orbit_noise(
            noised,
            home.frac,
            lattice,
            site_crystal,
            sigma_pos,
            pairs,
            operations,
            confined,
            home.projector,
        )
    graph = graph_of(
        noised, lattice, crystals, sigma_pos, settings, operations, dtype, pairs=pairs
    )
    return Noised(
        graph=graph,
        sigma_pos=sigma_pos.to(dtype),
        sigma_lat=sigma_lat.to(dtype),
        tau_pos=tau.to(dtype),
        tau_lat=tau_lat.to(dtype),
        coordinates=coordinates.to(dtype),
        axis=crystals.axis,
        position_target=target.to(dtype),
        lattice_target=lattice_target.to(dtype),
        lattice_used=free_coordinates(crystals.axis) & noisy.unsqueeze(1),
    )


def free_coordinates(axis: Tensor) -> Tensor:
    """(B, 3) bool: which of the three lattice coordinates drive an axis."""
    return (axis.unsqueeze(2) == torch.arange(3, device=axis.device)).any(1)


def graph_of(
    frac: Tensor,
    lattice: Tensor,
    crystals: Crystals,
    sigma_pos: Tensor,
    settings: GraphSettings,
    operations: Operations,
    dtype: torch.dtype,
    *,
    pairs: SitePairs,
) -> GraphBatch:
    """Snap, build and lay out the multigraph of positions noised by ``sigma_pos`` (B,) [Å]."""
    site_crystal = crystals.site_crystal
    snapped = snap_sites(
        frac, lattice, site_crystal, pairs, operations, snap_radius(sigma_pos)[site_crystal]
    )
    arrays = crystal_arrays(snapped.frac, lattice, crystals, operations)
    return make_batch(crystals.numbers, arrays, settings, snapped=snapped, dtype=dtype)
