"""Sampling many requests at once: options, and candidates as they come."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from langevin_xtal.config.sampling import Positions, SamplingConfig, Start
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.device import resolved_device
from langevin_xtal.sampling.batches import Batches, Outcome, Progress
from langevin_xtal.sampling.postprocess import PostprocessConfig
from langevin_xtal.sampling.samplers import Sampler, make_sampler
from langevin_xtal.sampling.spread import settled
from langevin_xtal.sampling.start import MOST_PROPOSALS, StartOptions

MOST_CHAINS = 1024
"""Of a candidate."""


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
    """Below 1, likelier Wyckoff positions are drawn more often, of sites and beside fixed ones.
    Those of a formula are the model's choice, see :func:`sample`."""
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
    chains: int = SamplingConfig.chains
    """Of a candidate, all on the same Wyckoff positions; of their crystals that is kept which the
    model's proposal finds likeliest (:func:`~langevin_xtal.model.likelihood.log_likelihoods`)."""
    sampler: Sampler = None  # type: ignore[assignment]
    """By default :class:`~langevin_xtal.sampling.samplers.Ancestral`, with 10 evaluations from a
    proposal and 20 from noise; :class:`~langevin_xtal.sampling.samplers.AnnealedLangevin` is the
    paper's."""
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        if self.sampler is None:
            object.__setattr__(self, "sampler", make_sampler("ancestral", start=self.start))
        for name in ("batch_size", "workers", "attempts", "proposals", "chains"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.chains > MOST_CHAINS:
            raise InputError(f"{self.chains} chains were asked for; the most is {MOST_CHAINS}")
        if self.chains > 1 and self.positions == "free":
            raise InputError(
                f"{self.chains} chains are compared on the same Wyckoff positions, which free "
                "sites do not have; give positions assigned, or 1 chain"
            )
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
            chains=config.chains,
            sampler=make_sampler(
                config.sampler, config.levels, config.steps, config.lattice_estimate, config.start
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
        # as before there were several chains
        several = {"chains": self.chains} if self.chains > 1 else {}
        return several | {
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
        What to sample; they may differ in elements, sites and groups. Those without a group or a
        stoichiometry, and formulas whose Wyckoff positions are not named, are answered by
        settings that the model chooses: equal ones by one after the other, the likeliest first
        (:mod:`langevin_xtal.sampling.spread`).
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
        :func:`~langevin_xtal.sampling.spread.settled` makes them so. Wyckoff positions of a
        formula that was not settled are drawn at the assignment temperature.
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
    if options.chains > 1:
        _check_comparable(requests, model)
    if trajectory_every is not None and trajectory_every < 1:
        raise InputError(f"trajectory_every is {trajectory_every}; it must be at least 1")
    request_of = dict(zip(streams, requests, strict=True))
    batches = Batches(model, request_of, seed, options, device, trajectory_every)
    threads = torch.get_num_threads()
    try:
        yield from batches.run(progress)
    finally:
        torch.set_num_threads(threads)


def _check_comparable(requests: Sequence[Request], model: CrystalModel) -> None:
    """Refuse several chains where the model cannot say which is the likeliest."""
    if model.proposal is None:
        raise InputError(
            f"several chains were asked for, which a proposal compares; model {model.name} has "
            "none: give 1 chain"
        )
    open_ones = [r for r in requests if r.formula is None and r.positions is None]
    if model.prior is None and open_ones:
        raise InputError(
            f"{open_ones[0]}: several chains are compared on the same Wyckoff positions, which "
            f"model {model.name}, without a prior, leaves free; give 1 chain"
        )
