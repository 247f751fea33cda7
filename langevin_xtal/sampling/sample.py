"""Sampling many requests at once: batches, streams, retries, candidates.

On a CPU, batches run side by side, one thread each: small tensors gain nothing from threads inside
an operation. Batches are filled by the edges their multigraphs are expected to have, which is what
time and memory go with. A batch's results do not depend on its size, so neither do they on the
number of workers.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from langevin_xtal.config.sampling import Positions, SamplingConfig, Start
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError, SamplingError
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.device import resolved_device
from langevin_xtal.runtime import keep_freed_memory
from langevin_xtal.sampling.chain import LONGEST, LONGEST_STEP, SHARPEST, SHORTEST, Chains
from langevin_xtal.sampling.postprocess import PostprocessConfig, Rejection, finish
from langevin_xtal.sampling.samplers import Ancestral, Sampler, make_sampler, run
from langevin_xtal.sampling.spread import settled
from langevin_xtal.sampling.start import MOST_PROPOSALS, StartOptions, start_chains
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.sampling.trajectory import Recorder, Trajectory
from langevin_xtal.version import __version__

Progress = Callable[[int, int], None]
"""Called with noise levels done and planned, over all batches."""

Attempt = tuple[int, int]
"""Index of a request and attempt at it."""

POLL_SECONDS = 0.2

MOST_EDGES = {"cpu": 20_000, "cuda": 1_000_000}
"""Edges expected in one batch at most, by kind of device.

An evaluation takes some 8 kB for each with ``small`` and 19 with ``base``, as measured on a CPU.
"""

EDGES_TO_ALL = 0.4
"""Edges of a site to each other site beside its neighbours, as measured on MP-20."""

DIVERGED = (
    f"diverged: a step was not finite or beyond {LONGEST_STEP:g} Å, or the cell left lengths of "
    f"{SHORTEST:g} to {LONGEST:g} Å and angles of {SHARPEST:g} to {180 - SHARPEST:g} degrees"
)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How requests are sampled; batch size and workers change no candidate."""

    batch_size: int = SamplingConfig.batch_size
    """Most chains in one batch; large crystals fill it sooner, see ``MOST_EDGES``."""
    workers: int | None = None
    """Batches side by side; by default one per CPU."""
    attempts: int = SamplingConfig.attempts
    """Streams tried for a request whose chains are rejected, at temperatures nearer to 1."""
    positions: Positions = SamplingConfig.positions
    """``assigned``: draw a Wyckoff position for every site from the model's prior and stay on it;
    ``free``: sites find their positions as they go, as in the paper. A model without a prior
    samples freely."""
    assignment_temperature: float = SamplingConfig.assignment_temperature
    """Below 1, likelier assignments of Wyckoff positions are drawn more often."""
    start: Start = SamplingConfig.start
    """``proposal``: chains with Wyckoff positions start from the model's proposal, at a middle
    noise level; ``noise``: from uniform positions at the largest, as in the paper. A model
    without a proposal starts from noise."""
    proposal_temperature: float = SamplingConfig.proposal_temperature
    """Below 1, likelier proposals are drawn more often."""
    proposal_noise: float = SamplingConfig.proposal_noise
    """Noise of the positions at which a proposal is refined [Å]; the cell's goes with it."""
    proposals: int = SamplingConfig.proposals
    """Drawn for a chain, of which the likeliest is refined."""
    sampler: Sampler = field(default_factory=Ancestral)
    """:class:`~langevin_xtal.sampling.samplers.AnnealedLangevin` is the paper's."""
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "attempts", "proposals"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.proposals > MOST_PROPOSALS:
            raise InputError(
                f"{self.proposals} proposals were asked for; the most is {MOST_PROPOSALS}"
            )
        for name in ("assignment_temperature", "proposal_temperature", "proposal_noise"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be positive and finite")

    @classmethod
    def of(cls, config: SamplingConfig, *, workers: int | None = None) -> SampleOptions:
        """Options by a configuration, such as ``SamplingConfig.preset("accurate")``.

        Raises
        ------
        InputError
            For values that do not go together.
        """
        return cls(
            batch_size=config.batch_size,
            workers=workers,
            attempts=config.attempts,
            positions=config.positions,
            assignment_temperature=config.assignment_temperature,
            start=config.start,
            proposals=config.proposals,
            proposal_temperature=config.proposal_temperature,
            proposal_noise=config.proposal_noise,
            sampler=make_sampler(
                config.sampler, config.levels, config.steps, config.lattice_estimate
            ),
            postprocess=PostprocessConfig(
                merge=config.merge,
                min_distance=config.min_distance,
                round_within=config.round_within,
            ),
        )

    @classmethod
    def preset(cls, name: str, *, workers: int | None = None, **changes: Any) -> SampleOptions:
        """Options by the name of a preset (``default``, ``accurate``, ``paper``), with changes.

        Raises
        ------
        InputError
            For an unknown preset, and for values out of range.
        """
        return cls.of(SamplingConfig.preset(name, **changes), workers=workers)

    def record(self) -> dict[str, object]:
        """All that makes a difference to candidates, to be kept beside them."""
        return {
            "positions": self.positions,
            "assignment_temperature": self.assignment_temperature,
            "start": self.start,
            "proposals": [self.proposals, self.proposal_temperature, self.proposal_noise],
            "sampler": repr(self.sampler),
            "postprocess": repr(self.postprocess),
            "attempts": self.attempts,
        }

    def start_options(self) -> StartOptions:
        """What concerns the start of chains."""
        return StartOptions(
            positions=self.positions,
            assignment_temperature=self.assignment_temperature,
            proposal_temperature=self.proposal_temperature,
            proposal_noise=self.proposal_noise,
            proposals=self.proposals if self.start == "proposal" else 0,
        )


@dataclass
class Outcome:
    """What one batch gave."""

    candidates: list[Candidate] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)  #: one for every rejected attempt
    trajectories: list[Trajectory] = field(default_factory=list)  #: of candidates, if asked for


def sample(
    requests: Sequence[Request],
    model: CrystalModel | str = "small",
    seed: int = 0,
    *,
    device: str = "auto",
    options: SampleOptions | None = None,
    progress: Progress | None = None,
) -> list[Candidate]:
    """Sample one candidate for every request.

    The result of request ``i`` depends on the weights, the request, ``seed`` and ``i`` alone, not
    on the batch size or its neighbours.

    Parameters
    ----------
    requests
        What to sample; they may differ in elements, sites and groups. Open ones, without a group
        or a stoichiometry, are answered by settings that the model chooses: equal ones by one
        after the other, the likeliest first (:mod:`langevin_xtal.sampling.spread`).
    model
        From :func:`langevin_xtal.load_model`, or the name of a shipped model.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU where there is one.

    Returns
    -------
    list[Candidate]
        In the order of the requests; those whose attempts were all rejected are missing. Use
        :func:`sample_batches` to see the rejections too.

    Raises
    ------
    InputError
        For a device that is not there.
    """
    model = load_model(model) if isinstance(model, str) else model
    requests = settled(requests, model, seed)
    found: dict[int, Candidate] = {}
    for outcome in sample_batches(
        requests, model, seed, device=device, options=options, progress=progress
    ):
        found |= {candidate.index: candidate for candidate in outcome.candidates}
    return [found[k] for k in sorted(found)]


def sample_batches(
    requests: Sequence[Request],
    model: CrystalModel | str = "small",
    seed: int = 0,
    *,
    indices: Sequence[int] | None = None,
    device: str = "auto",
    options: SampleOptions | None = None,
    progress: Progress | None = None,
    trajectory_every: int | None = None,
) -> Iterator[Outcome]:
    """As :func:`sample`, batch by batch as they finish, with the rejections of every attempt.

    Parameters
    ----------
    requests
        As for :func:`sample`, but none of them open:
        :func:`~langevin_xtal.sampling.spread.settled` makes them so.
    indices
        The stream of each request, 0, 1, … by default; part of a list gives the same candidates as
        the whole list when their indices are kept.
    trajectory_every
        Keep the chain of every candidate at its start, after every so many noise levels and at its
        end; it changes no candidate.

    Raises
    ------
    InputError
        For indices that do not fit the requests, a device that is not there, or
        ``trajectory_every`` below 1.
    """
    device = resolved_device(device)
    options = options or SampleOptions()
    model = load_model(model) if isinstance(model, str) else model
    streams = range(len(requests)) if indices is None else [int(k) for k in indices]
    if len(set(streams)) != len(requests) or len(streams) != len(requests):
        raise InputError(
            f"{len(requests)} requests need as many different indices; got {len(streams)}, "
            f"{len(set(streams))} of them different"
        )
    open_ones = [request for request in requests if request.is_open]
    if open_ones:
        raise InputError(f"{open_ones[0]}: the setting is open; settle it first")
    if trajectory_every is not None and trajectory_every < 1:
        raise InputError(f"trajectory_every is {trajectory_every}; it must be at least 1")
    request_of = dict(zip(streams, requests, strict=True))
    batches = _Batches(model, request_of, seed, options, device, trajectory_every)
    threads = torch.get_num_threads()
    try:
        yield from batches.run(progress)
    finally:
        torch.set_num_threads(threads)


class _Batches:
    """Batches in flight."""

    def __init__(
        self,
        model: CrystalModel,
        request_of: dict[int, Request],
        seed: int,
        options: SampleOptions,
        device: str,
        trajectory_every: int | None,
    ) -> None:
        self.provenance = _provenance(model, options)
        self.model, self.request_of = model.to(device), request_of
        self.trajectory_every = trajectory_every
        self.seed, self.options, self.device = seed, options, device
        # one batch at a time fills a GPU
        self.workers = options.workers or (1 if device != "cpu" else os.cpu_count() or 1)
        self.most_edges = MOST_EDGES["cpu" if device == "cpu" else "cuda"]
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.levels_done = 0
        self.levels_planned = 0

    def run(self, progress: Progress | None) -> Iterator[Outcome]:
        """All requests, and again those that were rejected."""
        keep_freed_memory()
        waiting: list[Attempt] = [(index, 0) for index in self.request_of]
        running: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(
            self.workers, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            try:
                while waiting or running:
                    # small batches cost nearly as much as full ones: rejected attempts wait
                    if len(waiting) >= self.options.batch_size or len(running) < self.workers:
                        for batch in self._split(waiting):
                            self.levels_planned += self.options.sampler.levels
                            running.add(pool.submit(self._sample, batch))
                        waiting = []
                    done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                    if progress is not None:
                        progress(self.levels_done, self.levels_planned)
                    for future in done:
                        outcome = future.result()
                        waiting += [
                            (r.index, r.attempt + 1)
                            for r in outcome.rejections
                            if r.attempt + 1 < self.options.attempts
                        ]
                        yield outcome
            finally:
                self.stop.set()
                for future in running:
                    future.cancel()

    def _split(self, waiting: list[Attempt]) -> list[list[Attempt]]:
        """Batches of about equal numbers of edges, at least one for every worker."""
        edges = [expected_edges(self.request_of[index], self.model) for index, _ in waiting]
        parts = max(self.workers, math.ceil(sum(edges) / self.most_edges))
        places = packed(edges, parts, self.options.batch_size)
        return [[waiting[k] for k in part] for part in places]

    def _sample(self, batch: list[Attempt]) -> Outcome:
        """One batch; in halves where the device has no memory for the whole."""
        done = 0

        def level_done() -> None:
            nonlocal done
            done += 1
            with self.lock:
                self.levels_done += 1

        try:
            return self._attempt(batch, level_done)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise SamplingError(
                    f"{self.request_of[batch[0][0]]}: the device has too little memory for a "
                    f"single chain ({str(error).splitlines()[0]}); ask for fewer sites, or "
                    "sample on a CPU"
                ) from None
        # the error and the tensors its frames held are gone only here
        if self.device != "cpu":
            torch.cuda.empty_cache()
        with self.lock:
            self.levels_planned += self.options.sampler.levels + done
        whole = Outcome()
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            outcome = self._sample(half)
            whole.candidates += outcome.candidates
            whole.rejections += outcome.rejections
            whole.trajectories += outcome.trajectories
        return whole

    def _attempt(self, batch: list[Attempt], level_done: Callable[[], None]) -> Outcome:
        model, sampler = self.model, self.options.sampler
        keys = stream_keys(
            self.seed, torch.tensor([i for i, _ in batch]), torch.tensor([a for _, a in batch])
        )
        asked = [self.request_of[index] for index, _ in batch]
        attempts = [attempt for _, attempt in batch]
        starts = start_chains(asked, model, keys, self.options.start_options(), attempts)
        groups = [request.space_group.number for request in asked]
        chains = Chains.start(model, starts, groups, keys, self.device)
        recorder = None
        if self.trajectory_every is not None:
            schedule = model.levels.grid(sampler.levels, chains.tau)
            recorder = Recorder(chains, schedule, self.trajectory_every)
        for done in run(sampler, chains):
            if recorder is not None:
                recorder.after(done)
            level_done()
            if self.stop.is_set():
                return Outcome()
        outcome = Outcome()
        lattice, frac = chains.lattice.cpu().numpy(), chains.frac.cpu().numpy()
        first = chains.crystals.site_start.tolist()
        diverged = chains.diverged.tolist()
        accepted = []
        for k, (index, attempt) in enumerate(batch):
            if diverged[k]:
                outcome.rejections.append(Rejection(asked[k], index, attempt, DIVERGED))
                continue
            result = finish(
                asked[k],
                starts[k],
                frac[first[k] : first[k + 1]],
                lattice[k],
                seed=self.seed,
                index=index,
                attempt=attempt,
                config=self.options.postprocess,
                provenance=self.provenance | {"request": str(asked[k])} | choice_facts(asked[k]),
            )
            if isinstance(result, Candidate):
                outcome.candidates.append(result)
                accepted.append((k, result))
            else:
                outcome.rejections.append(result)
        if recorder is not None:
            outcome.trajectories = recorder.trajectories(accepted)
        return outcome


def choice_facts(request: Request) -> dict[str, Value]:
    """For the provenance of a candidate whose setting the model chose; else empty."""
    choice = request.choice
    if choice is None:
        return {}
    return {
        "setting_rank": choice.rank,
        "group_probability": choice.group_probability,
        "assignment_probability": choice.assignment_probability,
    }


def expected_edges(request: Request, model: CrystalModel) -> float:
    """Edges that the multigraph of a request is expected to have, more or less.

    Every site has about ``k_max`` neighbours, and edges to the sites that are not among them.
    """
    config = model.network.config
    if request.formula is None:
        sites = float(len(request.numbers))
    else:
        each = float(model.statistics.site_multiplicity[request.space_group.number])
        sites = max(float(len(request.elements)), sum(request.counts.values()) / each)
    return sites * (config.k_max + (EDGES_TO_ALL * sites if config.all_pairs else 0.0))


def packed(sizes: Sequence[float], parts: int, count: int) -> list[list[int]]:
    """Places of the sizes, in order, in parts of about equal sums.

    Parameters
    ----------
    parts
        How many; there are fewer where sizes are few or very unequal.
    count
        Most places in a part; longer ones are cut.
    """
    total, before = sum(sizes), 0.0
    found: dict[int, list[int]] = {}
    for k, size in enumerate(sizes):
        found.setdefault(int(parts * (before + 0.5 * size) / total), []).append(k)
        before += size
    return [part[k : k + count] for part in found.values() for k in range(0, len(part), count)]


def _provenance(model: CrystalModel, options: SampleOptions) -> dict[str, Value]:
    within = options.postprocess.round_within
    rounding: dict[str, Value] = {"round_within": within} if within else {}
    return rounding | {
        "model": model.name,
        "weights": model.hash,
        "version": __version__,
        "positions": options.positions,
        "assignment_temperature": options.assignment_temperature,
        "start": options.start,
        "proposal": (
            f"{options.proposals} at temperature {options.proposal_temperature:g}, "
            f"{options.proposal_noise:g} Å"
        ),
        "sampler": repr(options.sampler),
        "levels": str(asdict(model.levels)),
    }
