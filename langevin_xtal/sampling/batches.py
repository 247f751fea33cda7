"""Batches of chains: what is in flight, retries, and which chain of a candidate is kept.

On a CPU, batches run side by side, one thread each: small tensors gain nothing from threads inside
an operation. Batches are filled by the edges their multigraphs are expected to have, which is what
time and memory go with. A batch's results do not depend on its size, so neither do they on the
number of workers.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import SamplingError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.likelihood import log_likelihoods
from langevin_xtal.runtime import keep_freed_memory
from langevin_xtal.sampling.chain import LONGEST, LONGEST_STEP, SHARPEST, SHORTEST, Chains
from langevin_xtal.sampling.postprocess import Rejection, finish
from langevin_xtal.sampling.samplers import run
from langevin_xtal.sampling.start import Start, start_chains
from langevin_xtal.sampling.streams import chain_keys, stream_keys
from langevin_xtal.sampling.trajectory import Recorder, Trajectory
from langevin_xtal.version import __version__

if TYPE_CHECKING:
    from langevin_xtal.sampling.sample import SampleOptions

Progress = Callable[[int, int], None]
"""Called with noise levels done and planned, over all batches."""

Attempt = tuple[int, int]
"""Index of a request and attempt at it."""

Row = tuple[int, int, int]
"""The same, and which of the chains of a candidate it is."""

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


@dataclass
class Outcome:
    """What one batch gave."""

    candidates: list[Candidate] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)  #: one for every rejected attempt
    trajectories: list[Trajectory] = field(default_factory=list)  #: of candidates, if asked for


class Batches:
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
                            parts = len(self._parts(batch))
                            self.levels_planned += parts * self.options.sampler.levels
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
        each = self.options.chains
        edges = [each * expected_edges(self.request_of[index], self.model) for index, _ in waiting]
        parts = max(self.workers, math.ceil(sum(edges) / self.most_edges))
        places = packed(edges, parts, max(1, self.options.batch_size // each))
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
                each = self.options.chains
                what, less = ("a single chain", "sites") if each == 1 else ("its chains", "chains")
                raise SamplingError(
                    f"{self.request_of[batch[0][0]]}: the device has too little memory for "
                    f"{what} ({str(error).splitlines()[0]}); ask for fewer {less}, or "
                    "sample on a CPU"
                ) from None
        # the error and the tensors its frames held are gone only here
        if self.device != "cpu":
            torch.cuda.empty_cache()
        with self.lock:
            parts = len(self._parts(batch))
            self.levels_planned += parts * self.options.sampler.levels + done
        whole = Outcome()
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            outcome = self._sample(half)
            whole.candidates += outcome.candidates
            whole.rejections += outcome.rejections
            whole.trajectories += outcome.trajectories
        return whole

    def _attempt(self, batch: list[Attempt], level_done: Callable[[], None]) -> Outcome:
        outcome, results = Outcome(), list[Candidate | Rejection]()
        frames: dict[int, Trajectory] = {}
        for part in self._parts(batch):
            found = self._run(part, level_done)
            if found is None:
                return outcome
            ends, recorder = found
            if recorder is not None:
                kept = [(k, end) for k, end in enumerate(ends) if isinstance(end, Candidate)]
                places = [len(results) + k for k, _ in kept]
                frames |= dict(zip(places, recorder.trajectories(kept), strict=True))
            results += ends
        each = self.options.chains
        for first in range(0, len(results), each):
            own = dict(enumerate(results[first : first + each], first))
            crystals = {k: one for k, one in own.items() if isinstance(one, Candidate)}
            if not crystals:
                outcome.rejections += [r for r in own.values() if isinstance(r, Rejection)][:1]
                continue
            place = self._likeliest(crystals)
            outcome.candidates.append(crystals[place])
            outcome.trajectories += [frames[place]] if place in frames else []
        return outcome

    def _parts(self, batch: list[Attempt]) -> list[list[Row]]:
        """The chains of a batch, in parts where those of a single candidate are too many."""
        each = self.options.chains
        rows = [(index, attempt, c) for index, attempt in batch for c in range(each)]
        if each == 1:
            return [rows]
        edges = [expected_edges(self.request_of[index], self.model) for index, _, _ in rows]
        places = packed(edges, math.ceil(sum(edges) / self.most_edges), len(rows))
        return [[rows[k] for k in part] for part in places]

    def _run(
        self, rows: Sequence[Row], level_done: Callable[[], None]
    ) -> tuple[list[Candidate | Rejection], Recorder | None] | None:
        """What chains end in, side by side; None where all is to stop."""
        model, sampler = self.model, self.options.sampler
        indices, attempts, which = (list(column) for column in zip(*rows, strict=True))
        keys = stream_keys(self.seed, torch.tensor(indices), torch.tensor(attempts))
        asked = [self.request_of[index] for index in indices]
        starts = start_chains(asked, model, keys, self.options.start_options(), attempts, which)
        groups = [request.space_group.number for request in asked]
        keys = chain_keys(keys, torch.tensor(which))
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
                return None
        return self._finished(rows, starts, chains), recorder

    def _finished(
        self, rows: Sequence[Row], starts: Sequence[Start], chains: Chains
    ) -> list[Candidate | Rejection]:
        """What every chain ends in."""
        lattice, frac = chains.lattice.cpu().numpy(), chains.frac.cpu().numpy()
        first = chains.crystals.site_start.tolist()
        diverged = chains.diverged.tolist()
        results: list[Candidate | Rejection] = []
        for k, (index, attempt, which) in enumerate(rows):
            asked = self.request_of[index]
            if diverged[k]:
                results.append(Rejection(asked, index, attempt, DIVERGED))
                continue
            kept = {"chain": which} if self.options.chains > 1 else {}
            facts = {"request": str(asked)} | choice_facts(asked) | kept
            results.append(
                finish(
                    asked,
                    starts[k],
                    frac[first[k] : first[k + 1]],
                    lattice[k],
                    seed=self.seed,
                    index=index,
                    attempt=attempt,
                    config=self.options.postprocess,
                    provenance=self.provenance | facts,
                )
            )
        return results

    def _likeliest(self, crystals: Mapping[int, Candidate]) -> int:
        """Key of the crystal that the proposal finds likeliest, of those of one candidate."""
        if len(crystals) == 1:
            return next(iter(crystals))
        proposal = self.model.precise_proposal
        assert proposal is not None
        units = [crystal.unit for crystal in crystals.values()]
        likely = log_likelihoods(proposal, self.model.statistics, units)
        return list(crystals)[int(likely.argmax())]


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
