"""Samplers: small objects with one ``step``, run over a schedule of noise levels.

With unit-noise predictions ε the score is −ε/σ, and the paper's ε_k = γ σ_k²/σ_F² makes every step
proportional to its level; ``step_size`` below is γ/σ_F².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from langevin_xtal.config.sampling import LatticeEstimate, SamplingConfig, Start
from langevin_xtal.errors import InputError
from langevin_xtal.extras import named
from langevin_xtal.sampling.chain import Chains

Schedule = tuple[Tensor, Tensor]
"""Noise levels of positions and of the lattice, (F, B) each, largest first."""

MOST_LEVELS = 10_000
"""Levels, and steps per level, that may be asked for by number."""


EVALUATIONS: Mapping[Start, int] = {"proposal": 10, "noise": 20}
"""Levels of :class:`Ancestral` by where chains start: from a proposal 20 find no more."""


class Sampler(Protocol):
    """What :func:`langevin_xtal.sampling.sample` runs."""

    @property
    def levels(self) -> int:
        """Noise levels."""
        ...

    @property
    def evaluations(self) -> int:
        """Network evaluations of a whole run."""
        ...

    def step(self, chains: Chains, schedule: Schedule, level: int) -> None:
        """Advance all chains through one noise level."""
        ...


class _Recorded:
    """Shown with its fields, but for an estimate of the lattice that is the default.

    Folders and stores of before it could be chosen record samplers by their representation.
    """

    def __repr__(self) -> str:
        values = [(f, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        shown = ", ".join(
            f"{f.name}={value!r}"
            for f, value in values
            if f.name != "lattice_estimate" or value != f.default
        )
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, kw_only=True, repr=False)
class AnnealedLangevin(_Recorded):
    """The paper's Algorithm 1: T Langevin steps per level, positions first, then the lattice.

    ============== =================== =====================================
    here           paper               meaning
    ============== =================== =====================================
    levels         F                   noise levels
    steps          T                   Langevin steps per level
    step_size      γ / σ_F²            step in units of the level's variance
    temperature    0.15                factor on the lattice noise
    ============== =================== =====================================
    """

    levels: int = 10
    steps: int = 80
    step_size: float = 0.1
    lattice_step_size: float = 0.1
    temperature: float = 0.15
    lattice_estimate: LatticeEstimate = SamplingConfig.lattice_estimate

    @property
    def evaluations(self) -> int:
        """Two per step, and one to remove the noise of the last level."""
        return 2 * self.levels * self.steps + 1

    def step(self, chains: Chains, schedule: Schedule, level: int) -> None:
        """X ← X + ε/2 s(X) + √ε z, then the same for L3 with cool noise."""
        sigma, sigma_lat = schedule[0][level], schedule[1][level]
        of_sites, of_cells = _of_sites(chains, sigma), sigma_lat.unsqueeze(1)
        for _ in range(self.steps):
            noise, _ = chains.noise(sigma, sigma_lat)
            drift = -0.5 * self.step_size * noise
            kick = self.step_size**0.5 * chains.streams.site_normals()
            chains.move_positions(of_sites * (drift + kick))
            _, noise = chains.noise(sigma, sigma_lat, self.lattice_estimate)
            drift = -0.5 * self.lattice_step_size * noise
            kick = self.lattice_step_size**0.5 * chains.streams.crystal_normals()
            chains.move_lattice(of_cells * (drift + self.temperature * kick))
        if level == self.levels - 1:
            _denoise(chains, sigma, sigma_lat, self.lattice_estimate)


@dataclass(frozen=True, kw_only=True, repr=False)
class Ancestral(_Recorded):
    """One evaluation per level: denoise, then add back the noise of the next level.

    For variance-exploding noise, x' = x̂ + (σ'/σ)² (x − x̂) + σ' √(1 − (σ'/σ)²) z with x̂ = x − σ ε
    (Song et al. 2021, appendix F). The temperatures scale z; the defaults were chosen on 200
    validation crystals.
    """

    levels: int = 20
    temperature: float = 0.7
    lattice_temperature: float = 0.3
    lattice_estimate: LatticeEstimate = SamplingConfig.lattice_estimate

    @property
    def evaluations(self) -> int:
        """One per level."""
        return self.levels

    def step(self, chains: Chains, schedule: Schedule, level: int) -> None:
        """From one noise level to the next; to none from the last."""
        sigma, sigma_lat = schedule[0][level], schedule[1][level]
        if level == self.levels - 1:
            _denoise(chains, sigma, sigma_lat, self.lattice_estimate)
            return
        noise, noise_lat = chains.noise(sigma, sigma_lat, self.lattice_estimate)
        after, after_lat = schedule[0][level + 1], schedule[1][level + 1]
        kept, kept_lat = (after / sigma) ** 2, (after_lat / sigma_lat) ** 2
        back, kick = (kept - 1) * sigma, self.temperature * after * (1 - kept) ** 0.5
        step = _of_sites(chains, back) * noise
        chains.move_positions(step + _of_sites(chains, kick) * chains.streams.site_normals())
        back = (kept_lat - 1) * sigma_lat
        kick = self.lattice_temperature * after_lat * (1 - kept_lat) ** 0.5
        step = back.unsqueeze(1) * noise_lat
        chains.move_lattice(step + kick.unsqueeze(1) * chains.streams.crystal_normals())


def _denoise(chains: Chains, sigma: Tensor, sigma_lat: Tensor, estimate: LatticeEstimate) -> None:
    noise, noise_lat = chains.noise(sigma, sigma_lat, estimate)
    chains.move_positions(_of_sites(chains, -sigma) * noise)
    chains.move_lattice(-sigma_lat.unsqueeze(1) * noise_lat)


def _of_sites(chains: Chains, values: Tensor) -> Tensor:
    """(A, 1) of every site, from values (B,) of the crystals."""
    return values[chains.site_crystal].unsqueeze(1)


def run(sampler: Sampler, chains: Chains) -> Iterator[int]:
    """Run all levels, yielding the number of levels done."""
    schedule = chains.model.levels.grid(sampler.levels, chains.tau)
    for level in range(sampler.levels):
        sampler.step(chains, schedule, level)
        yield level + 1


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": Ancestral,
    "langevin": AnnealedLangevin,
}
"""What makes a sampler, by name; called with ``levels`` and ``steps`` where they are asked for."""


def make_sampler(
    name: str,
    levels: int | None = None,
    steps: int | None = None,
    lattice_estimate: LatticeEstimate = SamplingConfig.lattice_estimate,
    start: Start = "noise",
) -> Sampler:
    """A sampler of :data:`SAMPLERS`, or one of your own named as ``"module:attribute"``.

    Parameters
    ----------
    levels, steps
        Noise levels, and steps per level; by default the sampler's own.
    lattice_estimate
        Of the samplers here, see :class:`~langevin_xtal.config.sampling.SamplingConfig`.
    start
        Where chains start, for the levels of ``ancestral`` (:data:`EVALUATIONS`).

    Raises
    ------
    InputError
        For another name, too many levels or steps, or steps where there are none.
    """
    for count, what in ((levels, "noise levels"), (steps, "steps per level")):
        if count is not None and count > MOST_LEVELS:
            raise InputError(f"{count} {what} were asked for; the most is {MOST_LEVELS}")
    asked = {"levels": levels, "steps": steps}
    changes: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if name == "ancestral":
        if steps is not None:
            raise InputError("steps per level belong to the langevin sampler; ancestral takes one")
        changes.setdefault("levels", EVALUATIONS[start])
    if name in SAMPLERS:
        return SAMPLERS[name](lattice_estimate=lattice_estimate, **changes)
    make = named(name, "sampler", " or ".join(SAMPLERS), "anything that makes a sampler")
    try:
        made = make(**changes)
    except TypeError as error:
        raise InputError(f"sampler {name!r} cannot be made: {error}") from None
    if not callable(getattr(made, "step", None)):
        raise InputError(f"sampler {name!r} makes no sampler: it has no method step")
    sampler: Sampler = made
    return sampler
