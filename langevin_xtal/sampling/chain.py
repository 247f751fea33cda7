"""The state of a batch of chains, and the network's view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.crystal.request import Request
from langevin_xtal.diffusion.noising import (
    Crystals,
    crystal_arrays,
    free_coordinates,
    graph_of,
    lattice_of,
)
from langevin_xtal.errors import GraphError, RequestError
from langevin_xtal.graph import build_multigraph
from langevin_xtal.graph.batch import GraphBatch
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
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, wyckoff_positions

SHORTEST, LONGEST = 1.2, 80.0
"""Cell lengths a chain is held within [Å]."""

PERIODS = 24.0
"""Cells spanned by the uniform start of a site confined to its Wyckoff position."""

LONGEST_STEP = 100.0
"""A chain with a longer step has exploded [Å]."""


def check_groups(requests: Sequence[Request]) -> None:
    """Refuse groups whose lattices cannot be sampled.

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


Assignment = Sequence[WyckoffPosition]
"""The Wyckoff position of every site of a request."""


def expected_lengths(
    request: Request, statistics: Statistics, assignment: Assignment | None = None
) -> np.ndarray:
    """(3,) cell lengths [Å] that sites, elements and group suggest, from training statistics.

    Without an assignment every site counts with the group's mean multiplicity.
    """
    number = request.space_group.number
    atoms = np.full(len(request.numbers), statistics.site_multiplicity[number])
    if assignment is not None:
        atoms = np.array([w.multiplicity for w in assignment], dtype=float)
    volume = statistics.atomic_volume[list(request.numbers)] @ atoms
    lengths = np.cbrt(volume) * np.exp(statistics.shape[number])
    axis = axis_coordinate(number)
    return np.array([lengths[axis == axis[k]].mean() for k in range(3)])


def starting_crystals(
    requests: Sequence[Request],
    statistics: Statistics,
    assignments: Sequence[Assignment] | None = None,
) -> Crystals:
    """The fixed parts of chains, with cells of the expected size and all sites at the origin.

    Raises
    ------
    RequestError
        For triclinic and monoclinic groups, whose cell angles are not sampled yet.
    """
    check_groups(requests)
    numbers = np.array([r.space_group.number for r in requests])
    table = operation_table()
    sites = np.array([len(r.numbers) for r in requests])
    given: Sequence[Assignment | None] = assignments or [None] * len(requests)
    lengths = np.stack(
        [expected_lengths(r, statistics, a) for r, a in zip(requests, given, strict=True)]
    )
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
    """Positions and lattices of a batch of chains under way: B crystals, A sites.

    A chain whose step is not finite or longer than ``LONGEST_STEP``, or whose cell grew too small
    for the multigraph, is marked in ``failed`` and stays where it is; the others never notice.
    """

    model: ScoreModel
    crystals: Crystals  #: the fixed parts
    streams: CandidateStreams
    frac: Tensor  #: (A, 3) fractional, float64
    coordinates: Tensor  #: (B, 3) lattice coordinates ℓ of a, b and c, float64
    free_space: Tensor | None = None  #: (A, 3, 3) fractional projectors of confined sites
    multiplicity: Tensor | None = None  #: (A,) of the Wyckoff positions drawn, if any
    evaluations: int = 0  #: network evaluations so far
    failed: Tensor = field(init=False)  #: (B,) bool

    def __post_init__(self) -> None:
        self.failed = torch.zeros(len(self.coordinates), dtype=torch.bool)

    @classmethod
    def start(
        cls,
        model: ScoreModel,
        requests: Sequence[Request],
        keys: Tensor,
        lattice_sigma: float,
        *,
        assigned: bool = False,
        temperature: float = 1.0,
    ) -> Chains:
        """Positions uniform in the cell, lattice coordinates normal around the expected cell.

        Parameters
        ----------
        lattice_sigma
            Noise level [Å] the first step will assume.
        assigned
            Draw a Wyckoff position for every site from the model's prior, start uniformly on it
            and stay on it; otherwise sites are free, as in the paper.
        temperature
            Of that draw: below 1, likelier assignments come up more often.
        """
        site_start = torch.tensor([0] + [len(r.numbers) for r in requests]).cumsum(0)
        streams = CandidateStreams(keys, site_start)
        start, assignments, free_space = streams.site_uniforms(), None, None
        multiplicity = None
        if assigned and model.prior is not None:
            uniforms = torch.nn.utils.rnn.pad_sequence(
                list(streams.site_uniforms()[:, 0].split(site_start.diff().tolist())),
                batch_first=True,
            )
            drawn = model.prior.draw(requests, uniforms, temperature)
            assignments = [
                [wyckoff_positions(r.space_group.number)[w] for w in row]
                for r, row in zip(requests, drawn, strict=True)
            ]
            flat = [w for row in assignments for w in row]
            free_space = torch.from_numpy(np.stack([w.projector for w in flat]))
            multiplicity = torch.tensor([w.multiplicity for w in flat])
            base = torch.from_numpy(np.stack([w.base for w in flat]))
            # many periods, so that the projection is uniform on the position
            start = base + (free_space @ (PERIODS * start).unsqueeze(2)).squeeze(2)
        crystals = starting_crystals(requests, model.statistics, assignments)
        chains = cls(
            model, crystals, streams, start, crystals.coordinates, free_space, multiplicity
        )
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
        n = len(self.coordinates)
        position = torch.full((n,), sigma_pos, dtype=torch.float64)
        lattice = torch.full((n,), sigma_lat, dtype=torch.float64)
        with torch.inference_mode():
            try:
                g = self._graph(position)
            except GraphError:
                self._give_up_collapsed()
                g = self._graph(position)
            out = self.model.network(g, position.float(), lattice.float())
            shift = position_noise(g, out, position.float()).double()
            change = lattice_noise(g, out, self.coordinates.float(), self.crystals.axis).double()
        self.evaluations += 1
        return shift, change

    def move_positions(self, step: Tensor) -> None:
        """Move sites by Cartesian vectors (A, 3) [Å]."""
        wild = ~(step.abs() <= LONGEST_STEP).all(1)
        exploded = torch.zeros_like(self.failed, dtype=torch.int64)
        exploded = exploded.index_add(0, self.site_crystal, wild.long())
        self.failed = self.failed | (exploded > 0)
        frame = torch.linalg.inv(self.lattice)[self.site_crystal]
        delta = (step.unsqueeze(1) @ frame).squeeze(1)
        if self.free_space is not None:
            delta = (self.free_space @ delta.unsqueeze(2)).squeeze(2)
        moved = self.frac + delta
        moved = moved - moved.floor()
        stays = self.failed[self.site_crystal].unsqueeze(1)
        self.frac = torch.where(stays, self.frac, moved)

    def move_lattice(self, step: Tensor) -> None:
        """Move the free lattice coordinates by (B, 3) [Å], within the allowed lengths."""
        self.failed = self.failed | ~(step.abs() <= LONGEST_STEP).all(1)
        moved = self.coordinates + (step * self.free).gather(1, self.crystals.axis)
        moved = moved.clamp(*_limits())
        self.coordinates = torch.where(self.failed.unsqueeze(1), self.coordinates, moved)

    @property
    def diverged(self) -> Tensor:
        """(B,) bool: chains that failed, or whose cell lengths are at a limit."""
        low, high = _limits()
        stuck = (self.coordinates <= low) | (self.coordinates >= high)
        return self.failed | stuck.any(1)

    def _graph(self, sigma_pos: Tensor) -> GraphBatch:
        return graph_of(
            self.frac,
            self.lattice,
            self.crystals,
            sigma_pos,
            self.model.network.config.graph_settings(),
            all_operations(),
            torch.float32,
            pairs=self._pairs,
        )

    def _give_up_collapsed(self) -> None:
        """Mark the chains too dense for the multigraph, and give them cells of normal size."""
        arrays = crystal_arrays(self.frac, self.lattice, self.crystals, all_operations())
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
        roomy = self.crystals.coordinates
        self.coordinates = torch.where(self.failed.unsqueeze(1), roomy, self.coordinates)

    @cached_property
    def _pairs(self) -> SitePairs:
        return site_pairs(self.site_crystal, self.crystals.op_start, self.crystals.op_count)


@cache
def _limits() -> tuple[float, float]:
    """Lattice coordinates of the shortest and longest cell length."""
    low, high = coordinate_from_length(np.array([SHORTEST, LONGEST]))
    return float(low), float(high)
