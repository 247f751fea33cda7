"""The state of a batch of chains, and the network's view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.crystal.request import Request
from langevin_xtal.diffusion.noising import Crystals, free_coordinates, graph_of, lattice_of
from langevin_xtal.errors import RequestError
from langevin_xtal.graph.snapping import SitePairs, all_operations, site_pairs
from langevin_xtal.model.checkpoint import ScoreModel
from langevin_xtal.model.scores import lattice_noise, position_noise
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.sampling.streams import CandidateStreams
from langevin_xtal.symmetry.groups import operation_table
from langevin_xtal.symmetry.lattice import (
    axis_coordinate,
    cell_directions,
    coordinate_from_length,
    has_fixed_angles,
)

SHORTEST, LONGEST = 1.2, 80.0
"""Cell lengths a chain is held within [Å]."""


def expected_lengths(request: Request, statistics: Statistics) -> np.ndarray:
    """(3,) cell lengths [Å] that sites, elements and group suggest, from training statistics."""
    number = request.space_group.number
    volume = statistics.atomic_volume[list(request.numbers)].sum()
    volume *= statistics.site_multiplicity[number]
    lengths = np.cbrt(volume) * np.exp(statistics.shape[number])
    axis = axis_coordinate(number)
    return np.array([lengths[axis == axis[k]].mean() for k in range(3)])


def starting_crystals(requests: Sequence[Request], statistics: Statistics) -> Crystals:
    """The fixed parts of chains, with cells of the expected size and all sites at the origin.

    Raises
    ------
    RequestError
        For triclinic and monoclinic groups, whose cell angles are not sampled yet.
    """
    for request in requests:
        if not has_fixed_angles(request.space_group.number):
            raise RequestError(
                f"space group {request.space_group} is {request.space_group.crystal_system}: "
                "sampling needs cell angles fixed by symmetry, that is groups 16 to 230"
            )
    numbers = np.array([r.space_group.number for r in requests])
    table = operation_table()
    sites = np.array([len(r.numbers) for r in requests])
    lengths = np.stack([expected_lengths(r, statistics) for r in requests])
    flat = [z for r in requests for z in r.numbers]
    return Crystals(
        numbers=torch.tensor(flat, dtype=torch.int64),
        frac=torch.zeros(len(flat), 3, dtype=torch.float64),
        site_start=torch.from_numpy(np.concatenate([[0], np.cumsum(sites)])),
        directions=torch.from_numpy(np.stack([cell_directions(n) for n in numbers])),
        coordinates=torch.from_numpy(coordinate_from_length(lengths)),
        axis=torch.from_numpy(np.stack([axis_coordinate(n) for n in numbers])),
        fixed_angles=torch.ones(len(requests), dtype=torch.bool),
        op_start=torch.from_numpy(table.start[numbers - 1]),
        op_count=torch.from_numpy(table.start[numbers] - table.start[numbers - 1]),
    )


@dataclass
class Chains:
    """Positions and lattices of a batch of chains under way: B crystals, A sites."""

    model: ScoreModel
    crystals: Crystals  #: the fixed parts
    streams: CandidateStreams
    frac: Tensor  #: (A, 3) fractional, float64
    coordinates: Tensor  #: (B, 3) lattice coordinates ℓ of a, b and c, float64
    evaluations: int = 0  #: network evaluations so far

    @classmethod
    def start(
        cls,
        model: ScoreModel,
        requests: Sequence[Request],
        keys: Tensor,
        lattice_sigma: float,
    ) -> Chains:
        """Positions uniform in the cell, lattice coordinates normal around the expected cell.

        ``lattice_sigma`` is the noise level [Å] the first step will assume.
        """
        crystals = starting_crystals(requests, model.statistics)
        streams = CandidateStreams(keys, crystals.site_start)
        chains = cls(model, crystals, streams, streams.site_uniforms(), crystals.coordinates)
        chains.move_lattice(lattice_sigma * streams.crystal_normals())
        return chains

    @property
    def lattice(self) -> Tensor:
        """(B, 3, 3) rows [Å]."""
        return lattice_of(self.coordinates, self.crystals.directions)

    @property
    def site_crystal(self) -> Tensor:
        """(A,) crystal of each site."""
        return self.crystals.site_crystal

    @property
    def free(self) -> Tensor:
        """(B, 3) bool: which lattice coordinates are degrees of freedom."""
        return free_coordinates(self.crystals.axis)

    def noise(self, sigma_pos: float, sigma_lat: float) -> tuple[Tensor, Tensor]:
        """Predicted noise: positions (A, 3) in units of σ, lattice (B, 3) in units of σ_L."""
        network = self.model.network
        n = len(self.coordinates)
        position = torch.full((n,), sigma_pos, dtype=torch.float64)
        lattice = torch.full((n,), sigma_lat, dtype=torch.float64)
        pairs = self._pairs()
        with torch.inference_mode():
            g = graph_of(
                self.frac,
                self.lattice,
                self.crystals,
                position,
                network.config.graph_settings(),
                all_operations(),
                torch.float32,
                pairs=pairs,
            )
            out = network(g, position.float(), lattice.float())
            shift = position_noise(g, out, position.float()).double()
            change = lattice_noise(g, out, self.coordinates.float(), self.crystals.axis).double()
        self.evaluations += 1
        return shift, change

    def move_positions(self, step: Tensor) -> None:
        """Move sites by Cartesian vectors (A, 3) [Å]; a chain that lost its numbers stays put."""
        frame = torch.linalg.inv(self.lattice)[self.site_crystal]
        moved = self.frac + (step.unsqueeze(1) @ frame).squeeze(1)
        moved = moved - moved.floor()
        self.frac = torch.where(moved.isfinite(), moved, self.frac)

    def move_lattice(self, step: Tensor) -> None:
        """Move the free lattice coordinates by (B, 3) [Å], within the allowed lengths."""
        low, high = coordinate_from_length(np.array([SHORTEST, LONGEST]))
        moved = self.coordinates + (step * self.free).gather(1, self.crystals.axis)
        moved = moved.clamp(float(low), float(high))
        self.coordinates = torch.where(moved.isfinite(), moved, self.coordinates)

    def _pairs(self) -> SitePairs:
        if not hasattr(self, "_site_pairs"):
            self._site_pairs = site_pairs(
                self.site_crystal, self.crystals.op_start, self.crystals.op_count
            )
        return self._site_pairs
