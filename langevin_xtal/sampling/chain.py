"""The state of a batch of chains, and the network's view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.config.sampling import LatticeEstimate, SamplingConfig
from langevin_xtal.diffusion.noising import Crystals, crystal_arrays, graph_of, moved_lattice
from langevin_xtal.errors import GraphError
from langevin_xtal.graph import build_multigraph
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.graph.snapping import Operations, SitePairs, all_operations, site_pairs
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.scores import cell_frame, lattice_noise, position_noise
from langevin_xtal.sampling.start import Start
from langevin_xtal.sampling.streams import CandidateStreams
from langevin_xtal.symmetry.lattice import (
    coordinate_from_cosine,
    coordinate_from_length,
)

SHORTEST, LONGEST = 1.2, 80.0
"""Cell lengths a chain is held within [Å]."""

SHARPEST = 20.0
"""Cell angles are held between this and 180 less this [degrees]."""

LONGEST_STEP = 100.0
"""A chain with a longer step has exploded [Å]."""


def starting_crystals(starts: Sequence[Start], groups: Sequence[int]) -> Crystals:
    """What chains of space groups ``groups`` start from, without noise."""
    return Crystals.of_groups(
        np.asarray(groups),
        [len(s.numbers) for s in starts],
        numbers=[z for s in starts for z in s.numbers],
        frac=np.concatenate([s.frac for s in starts]),
        coordinates=np.stack([s.coordinates for s in starts]),
        free=np.stack([s.free for s in starts]),
    )


@dataclass
class Chains:
    """Positions and lattices of a batch of chains under way: B crystals, A sites.

    A chain whose step is not finite or longer than ``LONGEST_STEP``, or whose cell grew too small
    for the multigraph, is marked in ``failed`` and stays where it is; the others never notice.
    """

    model: CrystalModel
    crystals: Crystals  #: the fixed parts, and the start
    streams: CandidateStreams
    tau: Tensor  #: (B,) place on the noise schedule at the start
    free_space: Tensor  #: (A, 3, 3) fractional projectors onto the directions sites may move in
    confined: Tensor  #: (B,) bool: crystals whose sites keep their Wyckoff positions
    frac: Tensor  #: (A, 3) fractional, float64
    coordinates: Tensor  #: (B, 6) lattice coordinates, float64
    evaluations: int = 0  #: network evaluations so far
    failed: Tensor = field(init=False)  #: (B,) bool

    def __post_init__(self) -> None:
        self.failed = torch.zeros_like(self.confined)

    @classmethod
    def start(
        cls,
        model: CrystalModel,
        starts: Sequence[Start],
        groups: Sequence[int],
        keys: Tensor,
        device: str | torch.device = "cpu",
    ) -> Chains:
        """Chains at the noise level where they start, on a device."""
        crystals = starting_crystals(starts, groups)
        eye = np.eye(3)
        free_space = np.stack(
            [
                (eye if s.positions is None else s.positions[k].projector) * s.moves[k]
                for s in starts
                for k in range(len(s.numbers))
            ]
        )
        crystals = crystals.to(device)
        chains = cls(
            model=model,
            crystals=crystals,
            streams=CandidateStreams(keys.to(device), crystals.site_start),
            tau=torch.tensor([s.tau for s in starts], dtype=torch.float64, device=device),
            free_space=torch.from_numpy(free_space).to(device),
            confined=torch.tensor([s.positions is not None for s in starts], device=device),
            frac=crystals.frac,
            coordinates=crystals.coordinates,
        )
        chains.failed = torch.tensor([not s.sound for s in starts], device=device)
        sigma, sigma_lat = (level[0] for level in model.levels.grid(2, chains.tau))
        chains.move_positions(sigma[chains.site_crystal, None] * chains.streams.site_normals())
        chains.move_lattice(sigma_lat.unsqueeze(1) * chains.streams.crystal_normals())
        return chains

    @property
    def lattice(self) -> Tensor:
        """(B, 3, 3) rows [Å]."""
        return cell_frame(self.coordinates).rows

    @cached_property
    def site_crystal(self) -> Tensor:
        """(A,) crystal of each site."""
        return self.crystals.site_crystal

    def noise(
        self,
        sigma_pos: Tensor,
        sigma_lat: Tensor,
        estimate: LatticeEstimate = SamplingConfig.lattice_estimate,
    ) -> tuple[Tensor, Tensor]:
        """Predicted noise at levels (B,): positions (A, 3) in σ, lattice (B, 6) in σ_L."""
        given_lat = torch.where(self._given, 0.0, sigma_lat)
        with torch.inference_mode():
            try:
                g = self._graph(sigma_pos)
            except GraphError:
                self._give_up_collapsed()
                g = self._graph(sigma_pos)
            out = self.model.network(g, sigma_pos.float(), given_lat.float())
            shift = position_noise(g, out, sigma_pos.float()).double()
            change = lattice_noise(
                g,
                out,
                self.coordinates.float(),
                self.crystals.driver,
                self.crystals.free,
                estimate,
            ).double()
        self.evaluations += 1
        return shift, change

    def move_positions(self, step: Tensor) -> None:
        """Move sites by Cartesian vectors (A, 3) [Å], along the directions they are free in."""
        wild = ~(step.abs() <= LONGEST_STEP).all(1)
        exploded = torch.zeros_like(self.failed, dtype=torch.int64)
        exploded = exploded.index_add(0, self.site_crystal, wild.long())
        self.failed = self.failed | (exploded > 0)
        # inv_ex: on a GPU inv waits to see whether it went well
        frame = torch.linalg.inv_ex(self.lattice).inverse[self.site_crystal]
        delta = (step.unsqueeze(1) @ frame).squeeze(1)
        delta = (self.free_space @ delta.unsqueeze(2)).squeeze(2)
        moved = self.frac + delta
        moved = moved - moved.floor()
        stays = self.failed[self.site_crystal].unsqueeze(1)
        self.frac = torch.where(stays, self.frac, moved)

    def move_lattice(self, step: Tensor) -> None:
        """Move the free lattice coordinates by (B, 6) [Å], within the allowed cells."""
        self.failed = self.failed | ~(step.abs() <= LONGEST_STEP).all(1)
        low, high = self._limits
        moved = moved_lattice(self.crystals, step, self.coordinates).clamp(low, high)
        stays = self.failed | self._given
        self.coordinates = torch.where(stays.unsqueeze(1), self.coordinates, moved)

    @property
    def diverged(self) -> Tensor:
        """(B,) bool: chains that failed, or whose cell lengths or angles are at a limit."""
        low, high = self._limits
        stuck = (self.coordinates <= low) | (self.coordinates >= high)
        return self.failed | (stuck.any(1) & ~self._given)

    @property
    def _given(self) -> Tensor:
        """(B,) bool: cells that were given and never move."""
        return ~self.crystals.free.any(1)

    def _graph(self, sigma_pos: Tensor) -> GraphBatch:
        return graph_of(
            self.frac,
            self.lattice,
            self.crystals,
            sigma_pos,
            self.confined,
            self.model.network.config.graph_settings(),
            self._operations,
            torch.float32,
            pairs=self._pairs,
        )

    def _give_up_collapsed(self) -> None:
        """Mark the chains too dense for the multigraph, and give them their first cells."""
        host = self.crystals.to("cpu")
        arrays = crystal_arrays(self.frac.cpu(), self.lattice.cpu(), host, all_operations())
        settings = self.model.network.config.graph_settings()
        for k in range(len(arrays)):
            own = slice(int(arrays.site_start[k]), int(arrays.site_start[k + 1]))
            alone = replace(
                arrays,
                lattice=arrays.lattice[k : k + 1],
                frac=arrays.frac[own],
                site_start=arrays.site_start[k : k + 2] - arrays.site_start[k],
                op_start=arrays.op_start[k : k + 1],
                op_count=arrays.op_count[k : k + 1],
                orbit=np.arange(own.stop - own.start),
            )
            try:
                build_multigraph(alone, settings, threads=1)
            except GraphError:
                self.failed[k] = True
        before = self.crystals.coordinates
        self.coordinates = torch.where(self.failed.unsqueeze(1), before, self.coordinates)

    @cached_property
    def _limits(self) -> tuple[Tensor, Tensor]:
        low, high = coordinate_limits()
        return low.to(self.coordinates.device), high.to(self.coordinates.device)

    @cached_property
    def _operations(self) -> Operations:
        return all_operations().to(self.frac.device)

    @cached_property
    def _pairs(self) -> SitePairs:
        return site_pairs(self.site_crystal, self.crystals.op_start, self.crystals.op_count)


@cache
def coordinate_limits() -> tuple[Tensor, Tensor]:
    """(6,) lattice coordinates of the shortest lengths and sharpest angles, and the other end."""
    low, high = coordinate_from_length(np.array([SHORTEST, LONGEST]))
    angle = float(coordinate_from_cosine(np.cos(np.radians(SHARPEST))))
    return (
        torch.tensor([low] * 3 + [angle] * 3, dtype=torch.float64),
        torch.tensor([high] * 3 + [-angle] * 3, dtype=torch.float64),
    )
