"""Gathering the structure types of a packed dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.proposal import expected_log_volume, lattice_features
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.model.structure_types import (
    LATTICE_GRAIN,
    StructureTypes,
    TypesConfig,
    rounded,
    template_orders,
)
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry.description import Description, describe
from langevin_xtal.symmetry.lattice import lattice_coordinates, lattice_freedom
from langevin_xtal.symmetry.wyckoff import table_start
from langevin_xtal.train.prior import site_positions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RADIUS = 0.25
"""Largest difference of a parameter between crystals of one type, in units of the cube root of
the volume of an atom."""
SHAPE = 0.12
"""Largest difference of lattice features between crystals of one type."""
MOST_PARAMETERS = 120
"""Crystals with more free coordinates are left out."""
WIDTHS = (0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.6, 2.5, 4.0)
"""Widths that are tried."""
JUDGES = 4000
"""Crystals left out, one at a time, by which width and novelty are chosen."""


@dataclass(frozen=True, eq=False)
class _Job:
    """One crystal of a dataset."""

    row: int
    group: int
    positions: IntArray
    numbers: IntArray
    frac: FloatArray
    lattice: FloatArray


def structure_types(
    data: PackedDataset,
    statistics: Statistics,
    distances: NDArray[np.float32],
    *,
    seed: int = 0,
    workers: int | None = 1,
) -> StructureTypes:
    """Types of all crystals of a dataset, and how the elements of a request weigh.

    Near-stable crystals come first: they represent a type they share with others. A single crystal
    far above the hull makes no type. Width and
    novelty are those under which crystals left out are likeliest.

    Parameters
    ----------
    statistics
        Of the model: cells are kept relative to the volume they let expect.
    distances
        (119, 119) squared, of the elements.
    """
    where = site_positions(data) - np.repeat(table_start()[data.group - 1], data.site_counts)
    flag = data.properties.get("near_stable", np.full(len(data), np.nan))
    jobs = []
    for row in np.argsort(flag == 0, kind="stable").tolist():
        own = data.sites_of(row)
        jobs.append(
            _Job(
                row, int(data.group[row]), where[own], data.numbers[own], data.frac[own],
                data.lattice[row],
            )
        )  # fmt: skip
    families: dict[tuple[int, object], list[_Member]] = {}
    every = parallel_map(_described, jobs, workers=workers, chunk=256)
    for job, found in zip(jobs, every, strict=True):
        if found is None:
            continue
        key, roles, description = found
        parameters = np.concatenate([*description.parameters, np.zeros(0)])
        cell = description.basis.T @ job.lattice
        coordinates = torch.from_numpy(lattice_coordinates(cell[None]))
        multiplicity = data.multiplicity[data.sites_of(job.row)]
        volume = torch.tensor([expected_log_volume(job.numbers, multiplicity, statistics)])
        features = lattice_features(coordinates, volume.double())[0].numpy()
        features = np.where(lattice_freedom(job.group), features, 0.0)
        families.setdefault((job.group, key), []).append(
            _Member(
                roles, tuple(description.positions), parameters,
                float(np.cbrt(multiplicity.sum())), features,
                bool(flag[job.row] != 0), description.order, job,
            )
        )  # fmt: skip
    return _weighed(_table(families), distances, seed)


def _described(job: _Job) -> tuple[object, tuple[int, ...], Description] | None:
    kinds = np.unique(job.numbers)
    assignment = tuple(tuple(sorted(job.positions[job.numbers == z].tolist())) for z in kinds)
    template, orders = template_orders(job.group, assignment)
    role_of = {int(kinds[k]): role for role, k in enumerate(orders[0])}
    role = [role_of[z] for z in job.numbers.tolist()]
    description = describe(job.group, job.positions.tolist(), job.frac, role, job.lattice)
    if sum(map(len, description.parameters)) > MOST_PARAMETERS:
        return None
    elements = tuple(int(kinds[k]) for k in orders[0])
    return template, elements, description


@dataclass(frozen=True, eq=False)
class _Member:
    """A crystal in the frame of its template."""

    elements: tuple[int, ...]  #: of each role
    positions: tuple[int, ...]
    parameters: FloatArray
    across: float  #: edge of the cell, in units of the cube root of the volume of an atom
    lattice: FloatArray
    stable: bool
    order: IntArray
    job: _Job

    def roles(self) -> list[int]:
        """Of each site, in the order of the description."""
        role = {z: k for k, z in enumerate(self.elements)}
        return [role[z] for z in self.job.numbers[self.order].tolist()]

    def is_like(self, other: _Member) -> bool:
        """Whether the two are of one type."""
        if self.positions != other.positions:
            return False
        gap = self.parameters - other.parameters
        gap -= np.rint(gap)
        shape = np.abs(self.lattice - other.lattice).max(initial=0.0)
        return bool(np.abs(gap).max(initial=0.0) * self.across < RADIUS and shape < SHAPE)


def _table(families: dict[tuple[int, object], list[_Member]]) -> StructureTypes:
    found: list[list[_Member]] = []
    for key in sorted(families):  # type: ignore[type-var]
        types: list[list[_Member]] = []
        for member in families[key]:
            like = next((own for own in types if member.is_like(own[0])), None)
            if like is None:
                types.append([member])
            else:
                like.append(member)
        # what a single crystal far above the hull has is no type
        found += [own for own in types if own[0].stable or len(own) > 1]
    first = [own[0] for own in found]
    crystals = [(t, member) for t, own in enumerate(found) for member in own]
    return StructureTypes(
        config=TypesConfig(),
        group=np.array([m.job.group for m in first], dtype=np.int64),
        sites=np.array([len(m.positions) for m in first], dtype=np.int64),
        role=np.array([r for m in first for r in m.roles()], dtype=np.int64),
        position=np.array([w for m in first for w in m.positions], dtype=np.int64),
        parameters=rounded(np.concatenate([*(m.parameters for m in first), np.zeros(0)])),
        lattice=np.rint(np.array([m.lattice for m in first]).reshape(-1, 6) * LATTICE_GRAIN)
        .clip(-30000, 30000)
        .astype(np.int64),
        type=np.array([t for t, _ in crystals], dtype=np.int64),
        elements=np.array([z for _, m in crystals for z in m.elements], dtype=np.int64),
        stable=np.array([m.stable for _, m in crystals], dtype=np.int64),
    )


def _weighed(types: StructureTypes, distances: NDArray[np.float32], seed: int) -> StructureTypes:
    """The same with the width and novelty under which crystals left out are likeliest."""
    rng = np.random.default_rng(seed)
    stable = np.flatnonzero(types.stable > 0)
    judged = rng.permutation(stable if len(stable) else np.arange(len(types.type)))[:JUDGES]
    if not len(judged):
        return types
    widths, novelties = np.array(WIDTHS), np.arange(-4.0, 8.5, 0.5)
    novel = np.exp(-novelties)
    total = np.zeros((len(widths), len(novelties)))
    for crystal in judged.tolist():
        right, all_ = types.without(distances, crystal, widths)  # (W,) each
        wanted = right[:, None] if right[0] >= 0 else novel[None]
        total += np.log(np.maximum(wanted, 1e-30) / (novel + all_[:, None]))
    width, novelty = np.unravel_index(int(total.argmax()), total.shape)
    config = TypesConfig(width=float(widths[width]), novelty=float(novelties[novelty]))
    return replace(types, config=config)
