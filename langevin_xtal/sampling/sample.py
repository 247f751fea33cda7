"""Sampling many requests at once: batches, streams, retries, candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import ScoreModel, load_model
from langevin_xtal.runtime import keep_freed_memory
from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.postprocess import PostprocessConfig, Rejection, finish
from langevin_xtal.sampling.samplers import Ancestral, Sampler, run
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.version import __version__

Progress = Callable[[int, int], None]
"""Called with network evaluations done and planned."""


@dataclass
class Outcome:
    """What sampling gave: candidates in the order of their requests, and what was rejected."""

    candidates: list[Candidate] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)  #: one for every rejected attempt


def sample(
    requests: Sequence[Request],
    model: ScoreModel | str = "small",
    seed: int = 0,
    *,
    sampler: Sampler | None = None,
    batch_size: int = 64,
    attempts: int = 3,
    postprocess: PostprocessConfig | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Candidate]:
    """Sample one candidate for every request.

    The result of request ``i`` depends on the weights, the request, ``seed`` and ``i`` alone, not
    on the batch size or its neighbours.

    Parameters
    ----------
    requests
        What to sample; they may differ in elements, sites and groups.
    model
        From :func:`langevin_xtal.load_model`, or the name of a shipped model.
    sampler
        :class:`~langevin_xtal.sampling.Ancestral` by default;
        :class:`~langevin_xtal.sampling.AnnealedLangevin` is the paper's.
    attempts
        Streams tried for a request whose chains are rejected.
    device
        ``"auto"`` or ``"cpu"``.

    Returns
    -------
    list[Candidate]
        In the order of the requests; those whose attempts were all rejected are missing. Use
        :func:`sample_batches` to see the rejections too.
    """
    found: dict[int, Candidate] = {}
    for outcome in sample_batches(
        requests,
        model,
        seed,
        sampler=sampler,
        batch_size=batch_size,
        attempts=attempts,
        postprocess=postprocess,
        device=device,
        progress=progress,
    ):
        found |= {candidate.index: candidate for candidate in outcome.candidates}
    return [found[k] for k in sorted(found)]


def sample_batches(
    requests: Sequence[Request],
    model: ScoreModel | str = "small",
    seed: int = 0,
    *,
    indices: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    batch_size: int = 64,
    attempts: int = 3,
    postprocess: PostprocessConfig | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """As :func:`sample`, batch by batch, with the rejections of every attempt.

    ``indices`` gives the stream of each request, 0, 1, … by default; part of a list gives the same
    candidates as the whole list when their indices are kept.
    """
    if device not in ("auto", "cpu"):
        raise InputError(f"device {device!r} is not supported; give auto or cpu")
    if batch_size < 1 or attempts < 1:
        raise InputError(
            f"batch size {batch_size} and attempts {attempts} must both be at least 1"
        )
    keep_freed_memory()
    model = load_model(model) if isinstance(model, str) else model
    sampler = sampler or Ancestral()
    config = postprocess or PostprocessConfig()
    request_of = dict(zip(indices or range(len(requests)), requests, strict=True))
    waiting = [(index, 0) for index in request_of]
    done = 0
    while waiting:
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        outcome = Outcome()
        keys = stream_keys(
            seed, torch.tensor([i for i, _ in batch]), torch.tensor([a for _, a in batch])
        )
        asked = [request_of[index] for index, _ in batch]
        sigma = float(model.levels.grid(sampler.levels)[1][0])
        chains = Chains.start(model, asked, keys, sigma)
        batches_left = 1 + -(-len(waiting) // batch_size)
        for _ in run(sampler, chains):
            if progress is not None:
                planned = done + sampler.evaluations * batches_left
                progress(done + chains.evaluations, planned)
        done += chains.evaluations
        again = []
        lattice, start = chains.lattice.numpy(), chains.crystals.site_start.tolist()
        provenance = _provenance(model, sampler)
        for k, (index, attempt) in enumerate(batch):
            result = finish(
                asked[k],
                chains.frac[start[k] : start[k + 1]].numpy(),
                lattice[k],
                seed=seed,
                index=index,
                attempt=attempt,
                config=config,
                provenance=provenance | {"request": str(asked[k])},
            )
            if isinstance(result, Candidate):
                outcome.candidates.append(result)
                continue
            outcome.rejections.append(result)
            if attempt + 1 < attempts:
                again.append((index, attempt + 1))
        waiting += again
        yield outcome


def _provenance(model: ScoreModel, sampler: Sampler) -> dict[str, object]:
    settings = asdict(sampler)  # type: ignore[call-overload]
    return {
        "model": model.name,
        "weights": model.hash,
        "version": __version__,
        "sampler": f"{type(sampler).__name__} {settings}",
        "levels": str(asdict(model.levels)),
    }
