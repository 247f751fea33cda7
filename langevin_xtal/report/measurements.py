"""What a benchmark returns: tables of plain values, to be written as JSON."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from langevin_xtal.config.training import Precision
from langevin_xtal.diffusion.noising import Builder
from langevin_xtal.report.instruments import Rate
from langevin_xtal.report.roofline import (
    LimitsTable,
    StageRow,
)


class GraphRow(TypedDict):
    """One builder at one noise level."""

    backend: str
    sigma: float
    edges_per_site: float
    crystals_per_second: Rate
    edges_per_second: Rate


class Part(TypedDict):
    """What all stages have."""

    peak_memory: NotRequired[int]


class GraphPart(Part):
    """Builders of multigraphs."""

    crystals: int
    rows: list[GraphRow]


class TrainPart(Part):
    """Training as it runs."""

    threads: int
    precision: Precision
    builder: Builder
    crystals_per_second: Rate
    seconds_per_step: Rate
    shares: dict[str, float]


class SamplePart(Part):
    """Sampling as it runs."""

    workers: int
    sampler: str
    requests: int
    candidates: int
    attempts: int
    structures_per_second: Rate
    seconds_per_structure: Rate
    evaluations_per_structure: float
    evaluations_per_second: Rate
    shares: dict[str, float]


class ProfilePart(Part):
    """Arithmetic and bytes."""

    limits: LimitsTable
    train: list[StageRow]
    sample: list[StageRow]


class DataTable(TypedDict):
    """What was measured with."""

    crystals: int
    hash: str


class BenchReport(TypedDict):
    """Versions, machine, weights and data, and what was measured."""

    langevin_xtal: str
    python: str
    torch: str
    numpy: str
    platform: str
    cpu: str
    cores: int
    device: str
    device_name: str
    cuda: str | None
    model: str
    weights: str
    network: dict[str, object]
    data: DataTable
    batch_size: NotRequired[int]
    repeat: NotRequired[int]
    graph: NotRequired[GraphPart]
    train: NotRequired[TrainPart]
    sample: NotRequired[SamplePart]
    profile: NotRequired[ProfilePart]
