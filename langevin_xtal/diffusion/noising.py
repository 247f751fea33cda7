"""Noising a batch of crystals for denoising score matching (paper, section 3.1 and 4).

One draw serves both processes: lattice coordinates get noise σ_L, the fractional coordinates stay
as the cell deforms, and Cartesian position noise σ is added in the deformed cell. A lattice left
clean (σ_L = 0) is the paper's position objective.

Most crystals are noised **confined**: each site moves only along the free directions of its
Wyckoff position, and counts with that position's multiplicity however near it comes to a more
special one. The others are noised freely, as in the paper, and snap to what they are near (see
:mod:`langevin_xtal.graph.snapping`). The network is given which of the two it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from langevin_xtal.config.training import Target, TrainingConfig
from langevin_xtal.crystal.batch import CrystalBatch
from langevin_xtal.diffusion.targets import orbit_noise, orbit_noise_of_arrays
from langevin_xtal.graph import torch_builder
from langevin_xtal.graph.backends import build_multigraph
from langevin_xtal.graph.batch import GraphBatch, lay_out, snap_radius
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.graph.equivalence import Messages, edge_messages
from langevin_xtal.graph.snapping import (
    Operations,
    SitePairs,
    Snapped,
    site_pairs,
    snap_arrays,
    snap_sites,
)
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.symmetry.groups import operation_table
from langevin_xtal.symmetry.lattice import COORDINATES, lattice_driver, lattice_freedom

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Builder = Literal["host", "torch"]
"""``host``: C++ or numba, through numpy; ``torch``: on the device of the tensors."""


@dataclass(frozen=True, kw_only=True)
class NoisingConfig:
    """How crystals are noised in training."""

    target: Target = TrainingConfig.target
    """``orbit``: mean over equivalent images; ``plain``: as in the paper."""
    clean_lattice: float = 0.2
    """Share of crystals whose lattice stays clean."""
    confined: float = 0.85
    """Share of crystals whose sites stay on their Wyckoff positions."""
    decoupling: float = 0.15
    """Standard deviation of τ of the lattice around τ of the positions."""


@dataclass(frozen=True, eq=False)
class Crystals(CrystalBatch[Tensor]):
    """Clean crystals of one batch on a device, float64: B crystals, A sites."""

    PER_CRYSTAL = ("coordinates", "driver", "free", "op_start", "op_count")

    numbers: Tensor  #: (A,) atomic numbers
    frac: Tensor  #: (A, 3), exactly on their special positions
    site_start: Tensor  #: (B + 1,)
    coordinates: Tensor  #: (B, 6) lattice coordinates
    driver: Tensor  #: (B, 6) free coordinate that drives each of them
    free: Tensor  #: (B, 6) bool: degrees of freedom of the lattice
    op_start: Tensor  #: (B,)
    op_count: Tensor  #: (B,)

    @classmethod
    def of_groups(
        cls,
        groups: IntArray,
        sites: Sequence[int],
        *,
        numbers: ArrayLike,
        frac: FloatArray,
        coordinates: FloatArray,
        free: NDArray[np.bool_] | None = None,
    ) -> Crystals:
        """Crystals of the space groups with these numbers (B,), with so many sites each.

        ``free`` (B, 6) are the lattice coordinates that may change, by default all that the groups
        leave free.
        """
        table = operation_table()
        unique, own = np.unique(groups, return_inverse=True)
        drivers = np.array([lattice_driver(n) for n in unique.tolist()])
        if free is None:
            free = np.array([lattice_freedom(n) for n in unique.tolist()])[own]
        return cls(
            site_start=torch.from_numpy(np.cumsum([0, *sites])),
            numbers=torch.from_numpy(np.asarray(numbers, dtype=np.int64)),
            frac=torch.from_numpy(np.asarray(frac, dtype=np.float64)),
            coordinates=torch.from_numpy(np.asarray(coordinates, dtype=np.float64)),
            driver=torch.from_numpy(drivers[own]),
            free=torch.from_numpy(free),
            op_start=torch.from_numpy(table.start[groups - 1]),
            op_count=torch.from_numpy(table.start[groups] - table.start[groups - 1]),
        )

    def to(self, device: torch.device | str) -> Crystals:
        """The same on another device."""
        return Crystals(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def part(self, share: slice) -> Crystals:
        """Some crystals that follow each other, ``share.start`` to ``share.stop``."""
        return self.select(torch.arange(share.start, share.stop, device=self.frac.device))

    def select(self, index: Tensor, sites: int | None = None) -> Crystals:
        """The crystals ``index``, in that order; ``sites`` as of :meth:`picked`."""
        return Crystals(**self.picked(index, sites))


@dataclass(frozen=True)
class Noised:
    """A noised batch and what the network should say about it."""

    graph: GraphBatch
    sigma_pos: Tensor  #: (B,) [Å]
    sigma_lat: Tensor  #: (B,) 0 where the lattice is clean
    tau_pos: Tensor  #: (B,) place of the position noise on the schedule
    tau_lat: Tensor  #: (B,) place of the lattice noise
    coordinates: Tensor  #: (B, 6) noised lattice coordinates
    driver: Tensor  #: (B, 6)
    position_target: Tensor  #: (A, 3) in units of σ
    lattice_target: Tensor  #: (B, 6) in units of σ_L, 0 for unused coordinates
    lattice_used: Tensor  #: (B, 6) bool: free coordinates of noised lattices

    def to(self, device: torch.device | str) -> Noised:
        """The same on another device."""
        return Noised(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def crystal_arrays(
    frac: Tensor, lattice: Tensor, crystals: Crystals, operations: Operations
) -> CrystalArrays:
    """What the builders on the host read."""
    return CrystalArrays(
        lattice=lattice.numpy(),
        frac=np.ascontiguousarray(frac.numpy()),
        site_start=crystals.site_start.numpy(),
        rotations=operations.whole.numpy(),
        translations=operations.translations.numpy(),
        op_start=crystals.op_start.numpy(),
        op_count=crystals.op_count.numpy(),
        orbit=np.arange(len(frac)),
    )


def noise_batch(
    crystals: Crystals,
    levels: NoiseLevels,
    config: NoisingConfig,
    settings: GraphSettings,
    operations: Operations,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    share: slice | None = None,
    builder: Builder | None = None,
) -> Noised:
    """Noise every crystal at a random level and build the multigraph the network sees.

    All on the device of the crystals and the operations.

    Parameters
    ----------
    generator
        Draws on its own device. One of the host gives the same noise on every device; one of the
        crystals' device saves the transfers.
    share
        Only these crystals of the batch, which are noised as among all of it.
    builder
        Of the multigraphs: ``host`` or ``torch``; by default the fastest where the crystals are.
    """
    n_crystals, n_sites = len(crystals.coordinates), len(crystals.frac)
    own = slice(0, n_crystals)
    own_sites = slice(0, n_sites)
    if share is not None:
        own = share
        own_sites = slice(*crystals.site_start[[share.start, share.stop]].tolist())
        crystals = crystals.part(share)
    site_crystal = crystals.site_crystal
    pairs = site_pairs(site_crystal, crystals.op_start, crystals.op_count)
    device = crystals.frac.device
    on_host = _on_host(builder, device)

    source: Any = {"generator": generator, "device": generator.device}

    # of the whole batch, so that a crystal's noise does not depend on the share
    def uniform() -> Tensor:
        return torch.rand(n_crystals, dtype=torch.float64, **source)[own].to(device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, **source)

    # stratified over the batch: every batch sees the whole schedule
    order = torch.randperm(n_crystals, **source)[own].to(device)
    tau = (order + uniform()) / n_crystals
    sigma_pos = levels.position(tau)
    tau_lat = (tau + config.decoupling * normal(n_crystals)[own].to(device)).clamp(0.0, 1.0)
    noisy = uniform() >= config.clean_lattice
    sigma_lat = torch.where(noisy, levels.lattice(tau_lat), 0.0)

    lattice_used = crystals.free & noisy.unsqueeze(1)
    lattice_target = normal(n_crystals, COORDINATES)[own].to(device) * lattice_used
    coordinates = moved_lattice(crystals, sigma_lat.unsqueeze(1) * lattice_target)
    lattice = cell_frame(coordinates).rows

    noise = normal(n_sites, 3)[own_sites].to(device)
    home = _snapped(crystals.frac, lattice, crystals, operations, None, pairs, on_host)
    kept = uniform() < config.confined
    confined = kept[site_crystal]
    inside = (noise.unsqueeze(1) @ home.projector).squeeze(1)
    noise = torch.where(confined.unsqueeze(1), inside, noise)
    cart = sigma_pos[site_crystal].unsqueeze(1) * noise
    # unlike inv, inv_ex does not wait for the device to say that no cell is flat
    frame = torch.linalg.inv_ex(lattice)[0][site_crystal]
    noised = home.frac + (cart.unsqueeze(1) @ frame).squeeze(1)
    target = noise
    if config.target == "orbit":
        found = None
        if on_host:
            arrays = crystal_arrays(home.frac, lattice, crystals, operations)
            found = orbit_noise_of_arrays(arrays, noised, sigma_pos, confined, home.projector)
        target = (
            orbit_noise(
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
            if found is None
            else found
        )
    graph = graph_of(
        noised,
        lattice,
        crystals,
        sigma_pos,
        kept,
        settings,
        operations,
        dtype,
        pairs=pairs,
        builder=builder,
    )
    return Noised(
        graph=graph,
        sigma_pos=sigma_pos.to(dtype),
        sigma_lat=sigma_lat.to(dtype),
        tau_pos=tau.to(dtype),
        tau_lat=tau_lat.to(dtype),
        coordinates=coordinates.to(dtype),
        driver=crystals.driver,
        position_target=target.to(dtype),
        lattice_target=lattice_target.to(dtype),
        lattice_used=lattice_used,
    )


def moved_lattice(crystals: Crystals, step: Tensor, coordinates: Tensor | None = None) -> Tensor:
    """(B, 6) lattice coordinates, those given or the crystals', after a step of the free ones."""
    start = crystals.coordinates if coordinates is None else coordinates
    return start + (step * crystals.free).gather(1, crystals.driver)


def graph_of(
    frac: Tensor,
    lattice: Tensor,
    crystals: Crystals,
    sigma_pos: Tensor,
    confined: Tensor,
    settings: GraphSettings,
    operations: Operations,
    dtype: torch.dtype,
    *,
    pairs: SitePairs,
    builder: Builder | None = None,
) -> GraphBatch:
    """Snap, build and lay out the multigraph of positions noised by ``sigma_pos`` (B,) [Å].

    Sites of crystals that are ``confined`` (B,) stay where they are. The builder is ``torch`` for
    tensors on CUDA and ``host`` otherwise, unless given.
    """
    site_crystal = crystals.site_crystal
    on_host = _on_host(builder, frac.device)
    radius: Tensor | None = None
    if frac.is_cuda or not bool(confined.all()):  # a device is not waited for
        radius = torch.where(confined, 0.0, snap_radius(sigma_pos))[site_crystal]
    snapped = _snapped(frac, lattice, crystals, operations, radius, pairs, on_host)
    messages: Messages | None = None
    if not on_host:
        given: dict[str, Tensor] = {
            "lattice": lattice,
            "frac": snapped.frac,
            "site_start": crystals.site_start,
            "rotations": operations.rotations,
            "translations": operations.translations,
            "op_start": crystals.op_start,
            "op_count": crystals.op_count,
        }
        # every site is its own orbit here, as the builder assumes by default
        graph = torch_builder.build_tensors(**given, orbit=None, settings=settings)
        given["orbit"] = torch.arange(len(frac), device=frac.device)
    else:
        arrays = crystal_arrays(snapped.frac, lattice, crystals, operations)
        # one thread: building is cheap, and callers run several batches side by side
        built = build_multigraph(arrays, settings, threads=1)
        given = {f.name: torch.from_numpy(getattr(arrays, f.name)) for f in fields(arrays)}
        graph = {f.name: torch.from_numpy(getattr(built, f.name)) for f in fields(built)}
        messages = edge_messages(arrays, built)
    return lay_out(
        crystals.numbers,
        given,
        confined,
        operations.back,
        graph,
        snapped=snapped,
        messages=messages,
        dtype=dtype,
    )


def clean_graph(crystals: Crystals, settings: GraphSettings, operations: Operations) -> GraphBatch:
    """The float32 multigraph of crystals as they are, on the host."""
    site_crystal = crystals.site_crystal
    return graph_of(
        crystals.frac,
        cell_frame(crystals.coordinates).rows,
        crystals,
        torch.zeros(len(crystals.coordinates), dtype=torch.float64),
        torch.ones(len(crystals.coordinates), dtype=torch.bool),
        settings,
        operations,
        torch.float32,
        pairs=site_pairs(site_crystal, crystals.op_start, crystals.op_count),
        builder="host",
    )


def _snapped(
    frac: Tensor,
    lattice: Tensor,
    crystals: Crystals,
    operations: Operations,
    radius: Tensor | None,
    pairs: SitePairs,
    on_host: bool,
) -> Snapped:
    """Sites on special positions, by the C++ extension where it can."""
    found = None
    if on_host:
        arrays = crystal_arrays(frac, lattice, crystals, operations)
        found = snap_arrays(arrays, operations, radius)
    if found is not None:
        return found
    return snap_sites(frac, lattice, crystals.site_crystal, pairs, operations, radius)


def _on_host(builder: Builder | None, device: torch.device) -> bool:
    return (builder or ("torch" if device.type == "cuda" else "host")) == "host"
