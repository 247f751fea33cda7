"""How fast this machine builds multigraphs, trains and samples, and where the time goes.

Rates are taken from the product as it runs, without instruments: medians over repetitions, with
the smallest and the largest. Shares of time come from one more run in which the functions of each
stage are wrapped in a stopwatch, on one thread and, on CUDA, waiting for the device at every
boundary; so stages that otherwise overlap are counted one after the other.

Peak memory is that of the process on a CPU (which keeps what it once took, see
:mod:`langevin_xtal.runtime`) and what torch had allocated on CUDA.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from langevin_xtal.config.training import Precision
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.noising import Builder
from langevin_xtal.errors import InputError
from langevin_xtal.graph import CrystalArrays, GraphSettings, available, build_multigraph
from langevin_xtal.graph.batch import snap_radius
from langevin_xtal.graph.snapping import all_operations, site_pairs, snap_sites
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.device import resolved_device
from langevin_xtal.report.instruments import (
    PeakMemory,
    Spread,
    Stopwatch,
    seconds_of,
    synchroniser,
    torch_threads,
    watched,
)
from langevin_xtal.report.measurements import (
    BenchReport,
    GraphPart,
    GraphRow,
    Part,
    ProfilePart,
    SamplePart,
    TrainPart,
)
from langevin_xtal.report.roofline import (
    Limits,
    StageRow,
    Tally,
    cpu_name,
    measure_limits,
    stage_rows,
)
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.samplers import Sampler
from langevin_xtal.train.loop import TrainConfig, Trainer
from langevin_xtal.version import __version__

STAGES = ("graph", "train", "sample")

PROFILE = "profile"
"""Not measured unless asked for: arithmetic and bytes of every stage against the machine's."""

GRAPH_CRYSTALS = 64
SIGMAS = 4
REFERENCE_CRYSTALS = 2  # the specification takes a fifth of a second for each
STEPS_PER_ROW = 3

TRAIN_POINTS = {
    "langevin_xtal.diffusion.noising:noise_batch": "noising",
    "langevin_xtal.diffusion.noising:graph_of": "graph",
    "langevin_xtal.diffusion.losses:denoising_losses": "forward",
    "torch:Tensor.backward": "backward",
    "langevin_xtal.train.loop:Trainer._advance": "optimiser",
}
"""Functions that make up a training step; each stage without those called inside it.

``graph`` is snapping, building and layout; ``optimiser`` is clipping, Adam, the average and the
bookkeeping of losses.
"""

SAMPLE_POINTS = {
    "langevin_xtal.sampling.start:start_chains": "start",
    "langevin_xtal.sampling.chain:Chains.start": "start",
    "langevin_xtal.diffusion.noising:graph_of": "graph",
    "langevin_xtal.model.network:EdgeNetwork.forward": "network",
    "langevin_xtal.sampling.postprocess:finish": "post-processing",
}
"""Functions that make up sampling, beside the sampler's ``steps``: scores, noise and moving."""

Progress = Callable[[int, int], None]
"""Called with parts done and planned."""


def measure(
    model: CrystalModel,
    data: PackedDataset,
    *,
    stages: Sequence[str] = STAGES,
    device: str = "cpu",
    batch_size: int = 64,
    repeat: int = 5,
    threads: int | None = None,
    sampler: Sampler | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure the stages asked for.

    Parameters
    ----------
    model
        Its network, noise levels and weights are used.
    data
        Crystals to build, train on and take requests from.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    threads
        Torch threads in training, beside the one that prepares batches, and batches sampled side
        by side. By default as ``train`` and ``sample`` choose.
    sampler
        By default that of ``sample``.

    Returns
    -------
    dict
        Plain numbers, texts, lists and tables, to be written as JSON; rates are
        :class:`Spread` as tables, sizes in bytes, times in seconds, σ in Å.

    Raises
    ------
    InputError
        For an unknown stage, a set without crystals, or CUDA where there is none.
    """
    _check(stages, batch_size, repeat, data)
    device = resolved_device(device)
    planned = [s for s in (*STAGES, PROFILE) if s in stages]
    report = surroundings(model, data, device)
    report["batch_size"], report["repeat"] = batch_size, repeat
    for k, stage in enumerate(planned):
        if progress is not None:
            progress(k, len(planned))
        part: Part
        with PeakMemory(device) as memory:
            if stage == "graph":
                with torch_threads(1):  # as the other builders
                    part = report["graph"] = measure_graph(
                        model, data, device=device, repeat=repeat
                    )
            elif stage == PROFILE:
                part = report["profile"] = measure_profile(
                    model,
                    data,
                    device=device,
                    batch_size=batch_size,
                    repeat=repeat,
                    sampler=sampler or SampleOptions().sampler,
                )
            elif stage == "train":
                part = report["train"] = measure_training(
                    model,
                    data,
                    device=device,
                    batch_size=batch_size,
                    repeat=repeat,
                    threads=threads,
                )
            else:
                part = report["sample"] = measure_sampling(
                    model,
                    data,
                    device=device,
                    batch_size=batch_size,
                    repeat=repeat,
                    threads=threads,
                    sampler=sampler or SampleOptions().sampler,
                )
        part["peak_memory"] = memory.bytes
    if progress is not None:
        progress(len(planned), len(planned))
    return report


def _check(stages: Sequence[str], batch_size: int, repeat: int, data: PackedDataset) -> None:
    for stage in stages:
        if stage not in (*STAGES, PROFILE):
            known = ", ".join((*STAGES, PROFILE))
            raise InputError(f"stage {stage!r} is not known; give some of {known}")
    for name, value in (("batch_size", batch_size), ("repeat", repeat)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if not len(data):
        raise InputError("the data set holds no crystals to measure with")


def surroundings(model: CrystalModel, data: PackedDataset, device: str) -> BenchReport:
    """Versions, machine, weights and data: what a number is worth nothing without."""
    return {
        "langevin_xtal": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "model": model.name,
        "weights": model.hash,
        "network": asdict(model.network.config),
        "data": {"crystals": len(data), "hash": data.content_hash},
    }


# -- multigraphs


def measure_graph(
    model: CrystalModel, data: PackedDataset, *, device: str, repeat: int
) -> GraphPart:
    """Crystals and edges per second of every builder there is, one thread, at several σ.

    ``reference``, the specification, is timed once on a few crystals. On CUDA, ``torch`` starts
    from tensors on the device and leaves its result there.
    """
    settings = model.network.config.graph_settings()
    chosen = data.select(_spread_out(len(data), GRAPH_CRYSTALS))
    rows: list[GraphRow] = []
    place = torch.linspace(0.0, 1.0, SIGMAS, dtype=torch.float64)
    for sigma in model.levels.position(place).tolist():
        crystals = noised_crystals(chosen, sigma)
        edges = len(build_multigraph(crystals, settings, threads=1).edge_dist)
        for backend in available():
            sample, runs, made = crystals, repeat, edges
            if backend == "reference":
                few = chosen.select(np.arange(min(len(chosen), REFERENCE_CRYSTALS)))
                sample, runs = noised_crystals(few, sigma), 1
                made = len(build_multigraph(sample, settings, threads=1).edge_dist)
            build = _builder(sample, settings, backend, device)
            if backend != "reference":
                build()
            seconds = seconds_of(build, runs, synchroniser(device))
            rows.append(
                {
                    "backend": backend,
                    "sigma": sigma,
                    "edges_per_site": made / len(sample.frac),
                    "crystals_per_second": Spread.of([len(sample) / s for s in seconds]).table(),
                    "edges_per_second": Spread.of([made / s for s in seconds]).table(),
                }
            )
    return {"crystals": len(chosen), "rows": rows}


def noised_crystals(data: PackedDataset, sigma: float, seed: int = 0) -> CrystalArrays:
    """The crystals with positions noised by ``sigma`` [Å] and snapped, as builders get them."""
    rng = np.random.default_rng(seed)
    crystal = np.repeat(np.arange(len(data)), np.diff(data.site_start))
    step = sigma * rng.standard_normal(data.frac.shape)
    frac = data.frac + np.einsum("ai,aij->aj", step, np.linalg.inv(data.lattice)[crystal])
    arrays = CrystalArrays.of_groups(data.lattice, frac, data.site_start, data.group)
    site_crystal = torch.from_numpy(crystal)
    pairs = site_pairs(
        site_crystal, torch.from_numpy(arrays.op_start), torch.from_numpy(arrays.op_count)
    )
    radius = snap_radius(torch.full((len(frac),), sigma, dtype=torch.float64))
    snapped = snap_sites(
        torch.from_numpy(frac),
        torch.from_numpy(arrays.lattice),
        site_crystal,
        pairs,
        all_operations(),
        radius,
    )
    return CrystalArrays.of_groups(data.lattice, snapped.frac.numpy(), data.site_start, data.group)


def _builder(
    crystals: CrystalArrays, settings: GraphSettings, backend: str, device: str
) -> Callable[[], object]:
    if backend == "torch" and device == "cuda":
        from langevin_xtal.graph.torch_builder import build_tensors

        given = {k: torch.as_tensor(v, device=device) for k, v in vars(crystals).items()}
        return lambda: build_tensors(**given, settings=settings)
    return lambda: build_multigraph(crystals, settings, backend, threads=1)


# -- training


def measure_training(
    model: CrystalModel,
    data: PackedDataset,
    *,
    device: str,
    batch_size: int,
    repeat: int,
    threads: int | None,
    precision: Precision = "float32",
    builder: Builder | None = None,
) -> TrainPart:
    """Crystals per second of ``train`` as it runs, and shares of the time of a step."""
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    steps = STEPS_PER_ROW * (repeat + 1)
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        log_every=STEPS_PER_ROW,
        validate_every=steps,
        save_every=steps,
        precision=precision,
        network=model.network.config,
        levels=model.levels,
    )
    synchronise = synchroniser(device)
    with TemporaryDirectory() as folder, torch_threads(threads):
        trainer = Trainer(data, Path(folder), config, device=device, builder=builder, start=model)
        rates, last = [], time.perf_counter()
        for _ in trainer.run():
            synchronise()
            now = time.perf_counter()
            rates.append(STEPS_PER_ROW * batch_size / (now - last))
            last = now
    watch = Stopwatch(synchronise)
    with torch_threads(threads), watched(watch, TRAIN_POINTS):
        for _ in range(STEPS_PER_ROW):
            trainer._advance(trainer._prepare(trainer.step))
    return {
        "threads": threads,
        "precision": precision,
        "builder": trainer.builder,
        "crystals_per_second": Spread.of(rates[1:]).table(),
        "seconds_per_step": Spread.of([batch_size / rate for rate in rates[1:]]).table(),
        "shares": _shares(watch.seconds, TRAIN_POINTS.values()),
    }


# -- sampling


def measure_sampling(
    model: CrystalModel,
    data: PackedDataset,
    *,
    device: str,
    batch_size: int,
    repeat: int,
    threads: int | None,
    sampler: Sampler,
) -> SamplePart:
    """Structures per second, attempts that were rejected included.

    One batch of requests with the sites and groups of crystals of the data, the same each time.
    """
    asked = requests_like(data, batch_size)
    options = SampleOptions(batch_size=batch_size, workers=threads, sampler=sampler)
    alone = replace(options, workers=1)
    synchronise = synchroniser(device)

    def run(options: SampleOptions) -> tuple[float, int, int]:
        """Seconds, candidates and attempts."""
        found = attempts = 0
        synchronise()
        start = time.perf_counter()
        for outcome in sample_batches(asked, model, device=device, options=options):
            found += len(outcome.candidates)
            attempts += len(outcome.candidates) + len(outcome.rejections)
        synchronise()
        return time.perf_counter() - start, found, attempts

    list(sample_batches(asked[:2], model, device=device, options=options))  # fill caches
    runs = [run(options) for _ in range(repeat)]
    _, found, attempts = runs[0]
    if not found:
        raise InputError(
            f"model {model.name} gave no candidate for {len(asked)} requests; "
            "give a trained model to measure sampling"
        )
    watch = Stopwatch(synchronise)
    order = ("start", "graph", "network", "steps", "post-processing", "other")
    kind = type(sampler)
    points = SAMPLE_POINTS | {f"{kind.__module__}:{kind.__name__}.step": "steps"}
    with watched(watch, points):
        total, _, _ = run(alone)
    other = max(0.0, total - sum(watch.seconds.values()))
    evaluations = attempts * sampler.evaluations
    return {
        "workers": threads or os.cpu_count() or 1,
        "sampler": repr(sampler),
        "requests": len(asked),
        "candidates": found,
        "attempts": attempts,
        "structures_per_second": Spread.of([n / s for s, n, _ in runs]).table(),
        "seconds_per_structure": Spread.of([s / n for s, n, _ in runs]).table(),
        "evaluations_per_structure": evaluations / found,
        "evaluations_per_second": Spread.of([evaluations / s for s, _, _ in runs]).table(),
        "shares": _shares(watch.seconds | {"other": other}, order),
    }


# -- arithmetic and bytes


def measure_profile(
    model: CrystalModel,
    data: PackedDataset,
    *,
    device: str,
    batch_size: int,
    repeat: int,
    sampler: Sampler,
) -> ProfilePart:
    """Seconds, operations and bytes of every stage beside the machine's limits, on one thread.

    A training step, and, with trained weights, sampling of one batch. Seconds are the least of
    ``repeat`` runs, each stage on its own; on a CPU those that the thread ran, whatever else the
    machine did.
    """
    synchronise = synchroniser(device)
    clock = time.thread_time if device == "cpu" else time.perf_counter
    with torch_threads(1):
        limits = measure_limits(device, synchronise, clock)
        config = TrainConfig(
            steps=1000, batch_size=batch_size, network=model.network.config, levels=model.levels
        )
        with TemporaryDirectory() as folder:
            trainer = Trainer(data, Path(folder), config, device=device, start=model)

            def step() -> None:  # always the same crystals
                trainer._advance(trainer._prepare(0))

            step()  # fills caches
            train = _profiled(step, TRAIN_POINTS, limits, synchronise, clock, repeat)
        asked = requests_like(data, batch_size)
        options = SampleOptions(batch_size=batch_size, workers=1, sampler=sampler, attempts=1)
        kind = type(sampler)
        points = SAMPLE_POINTS | {f"{kind.__module__}:{kind.__name__}.step": "steps"}

        def draw() -> None:
            list(sample_batches(asked, model, device=device, options=options))

        draw()
        sample = _profiled(draw, points, limits, synchronise, clock, repeat)
    return {"limits": limits.table(), "train": train, "sample": sample}


def _profiled(
    run: Callable[[], None],
    points: Mapping[str, str],
    limits: Limits,
    synchronise: Callable[[], None],
    clock: Callable[[], float],
    repeat: int,
) -> list[StageRow]:
    """Rows of the stages of a run."""
    best: dict[str, float] = {}
    for _ in range(repeat):
        watch = Stopwatch(synchronise, clock)
        with watched(watch, points):
            run()
        best = {k: min(v, best.get(k, v)) for k, v in watch.seconds.items()}
    tally = Tally()
    with watched(tally, points):
        run()
    order = [name for name in dict.fromkeys(points.values()) if name in best]
    return stage_rows({name: best[name] for name in order}, tally.work, limits)


def requests_like(data: PackedDataset, count: int) -> list[Request]:
    """``count`` requests with the sites and groups of crystals spread over the data."""
    found = []
    for k in np.resize(_spread_out(len(data), count), count):
        z, n = np.unique(data.numbers[data.sites_of(int(k))], return_counts=True)
        sites = {SYMBOLS[a]: int(b) for a, b in zip(z, n, strict=True)}
        found.append(Request(int(data.group[k]), sites))
    return found


def _spread_out(total: int, count: int) -> np.ndarray:
    return np.linspace(0, total - 1, min(total, count)).round().astype(np.int64)


def _shares(seconds: Mapping[str, float], stages: Iterable[str]) -> dict[str, float]:
    """Parts of the whole, in the order of the stages."""
    spent = dict.fromkeys(stages, 0.0) | dict(seconds)
    whole = sum(spent.values())
    return {name: value / whole for name, value in spent.items()}
