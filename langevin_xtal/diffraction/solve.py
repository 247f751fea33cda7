"""Structures for a powder pattern and a composition.

Candidates are sampled in rounds. The cell of each is fitted to the pattern
(:mod:`langevin_xtal.diffraction.cells`), those whose patterns are most alike are refined
(:mod:`langevin_xtal.diffraction.refine`), and all are ranked by R_wp. The first round takes the
likeliest settings; in each further one, half of the samples go on along that order and half go to
the settings whose candidates fitted best. The search ends when a refined candidate explains the
pattern, or when all samples are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.solving import SolveConfig
from langevin_xtal.crystal.asymmetric import asymmetric_unit
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.distances import min_distance
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.diffraction.cells import Bins, fitted_cells
from langevin_xtal.diffraction.pattern import Pattern
from langevin_xtal.diffraction.radiation import scattering_parameters
from langevin_xtal.diffraction.refine import Refined, Target, refine, refine_in_stages
from langevin_xtal.diffraction.simulate import Crystal
from langevin_xtal.errors import InputError, LangevinXtalError, RejectError, RequestError
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.spread import Spread, SpreadOptions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Start = tuple[float, Crystal, int]
"""Likeness to the pattern, the crystal in a fitted cell, and its candidate's place."""
Progress = Callable[[int, int], None]
"""Called with samples done and planned."""

NEAREST = 0.78
"""Shortest distance between atoms of a solution [Å]."""
KNOWN = 0.1
"""Share of the usual strains that is tried where the cell is known."""
MOST_MISFITS = 5000
"""Settings that a known cell may rule out before the search gives up."""
SUPERGROUP_SYMPRECS = (0.3, 0.1, 0.03)
"""Tolerances at which a refined crystal's symmetry is looked for [Å], loosest first."""
FAR_BETTER = 0.9
"""Times the supergroup's R_wp, below which a refinement is better without a closer look."""
PRIOR = 0.003
"""Likeness that a factor of e in the probability of a setting is worth."""
STARTS_OF_SETTING = 2
"""Starts of one setting that are refined before others of it wait."""
LEAST_PROBABILITY = 1e-12
NEARLY = 2.0
"""Times a good fit's goodness of fit, up to which free peak widths may do the rest."""
FAIR = 0.12
"""R_wp up to which a fit that nothing else comes near may end the search."""
SETTLED_FITS = 3
"""Candidates from which it has to have been reached."""
POOR = 0.35
"""R_wp above which nothing fits."""


@dataclass(frozen=True, kw_only=True)
class SolveOptions(SolveConfig):
    """How long to search, how closely to look, and how candidates are sampled."""

    sampling: SampleOptions = field(default_factory=SampleOptions)
    spread: SpreadOptions = field(default_factory=SpreadOptions)

    @classmethod
    def of(cls, config: SolveConfig, *, workers: int | None = None) -> SolveOptions:
        """Options by a configuration; ``workers`` are those that sample."""
        own = {f.name: getattr(config, f.name) for f in fields(SolveConfig)}
        return cls(**own, sampling=SampleOptions(workers=workers))


@dataclass(frozen=True, eq=False)
class Solution:
    """A candidate and its fit to the pattern."""

    candidate: Candidate  #: as sampled
    likeness: float  #: of its pattern in the best cell, before refinement; 0 to 1
    refined: Refined | None  #: None where it was not refined

    @property
    def crystal(self) -> Crystal:
        """As refined, or as sampled."""
        return self.candidate.unit if self.refined is None else self.refined.crystal

    @property
    def r_wp(self) -> float:
        """Weighted profile residual; infinite where it was not refined."""
        return float("inf") if self.refined is None else self.refined.r_wp

    @property
    def probability(self) -> float:
        """Of the setting, given the request; NaN where the request left nothing open."""
        choice = self.candidate.request.choice
        return float("nan") if choice is None else choice.probability


def solve(
    pattern: Pattern,
    request: Request,
    model: CrystalModel | str = "small",
    seed: int = 0,
    *,
    options: SolveOptions | None = None,
    progress: Progress | None = None,
) -> list[Solution]:
    """Search for structures of a composition that have a pattern.

    Parameters
    ----------
    request
        With a formula; space group, Z and Wyckoff positions may be open.

    Returns
    -------
    list[Solution]
        By R_wp, the best first; candidates that were not refined follow by how alike their
        patterns are.

    Raises
    ------
    InputError
        For a pattern without peaks, a request without a formula, elements without scattering
        factors.
    """
    found: list[Solution] = []
    for some in solve_rounds(pattern, request, model, seed, options=options, progress=progress):
        found += some
    return ranked(found)


def ranked(solutions: Sequence[Solution]) -> list[Solution]:
    """The best first: by R_wp with small penalties on parameters and improbable settings, then by
    likeness."""
    best = min((one.refined.gof for one in solutions if one.refined is not None), default=1.0)

    def key(one: Solution) -> tuple[float, float]:
        if one.refined is None:
            return math.inf, -one.likeness
        return penalised(one.refined, best, _log_prior(one.candidate)), -one.likeness

    return sorted(solutions, key=key)


def solve_rounds(
    pattern: Pattern,
    request: Request,
    model: CrystalModel | str = "small",
    seed: int = 0,
    *,
    options: SolveOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[list[Solution]]:
    """As :func:`solve`, round by round."""
    options = options or SolveOptions()
    if request.formula is None:
        raise InputError("a pattern is solved for a composition: give a formula")
    scattering_parameters([SYMBOLS.index(symbol) for symbol in request.elements])
    target = Target.of(pattern)
    bins = Bins(target)
    model = load_model(model) if isinstance(model, str) else model
    search = _Search(request, model, seed, options)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**31,)))
    found: list[Solution] = []
    done = 0
    while done < options.samples:
        count = min(options.round_size, options.samples - done)
        requests = search.next_requests(count)
        if not requests:
            break
        candidates: list[Candidate] = []
        begin = done
        for outcome in sample_batches(
            requests, model, seed, indices=range(done, done + len(requests)),
            options=options.sampling,
        ):  # fmt: skip
            candidates += outcome.candidates
            if progress is not None:
                progress(begin + len(candidates), options.samples)
        done += len(requests)
        solutions = examined(sorted(candidates, key=lambda c: c.index), target, bins, rng, options)
        search.learn(solutions)
        found += solutions
        yield solutions
        if progress is not None:
            progress(done, options.samples)
        if any(is_good(one, options) for one in solutions) or is_settled(found):
            break


def is_good(solution: Solution, options: SolveOptions) -> bool:
    """Whether a solution explains the pattern."""
    return solution.refined is not None and solution.refined.gof <= options.good_gof


def is_settled(solutions: Sequence[Solution]) -> bool:
    """Whether a fair fit was reached from several candidates and every other is far worse.

    Measured patterns are seldom explained to within their noise.
    """
    fits = sorted(one.r_wp for one in solutions if one.refined is not None)
    if not fits or fits[0] > FAIR:
        return False
    alike = sum(r_wp <= 1.02 * fits[0] for r_wp in fits)
    return alike >= SETTLED_FITS and all(r_wp >= 2 * fits[0] for r_wp in fits[alike:])


def examined(
    candidates: Sequence[Candidate],
    target: Target,
    bins: Bins,
    rng: np.random.Generator,
    options: SolveOptions,
) -> list[Solution]:
    """Candidates with their cells fitted, and the most alike of them refined."""
    starts: list[Start] = []
    likeness: dict[int, float] = {}
    for place, candidate in enumerate(candidates):
        try:
            cells = fitted_cells(
                candidate.unit, target, bins, rng, strain=KNOWN if options.cell else 1.0
            )
        except InputError:  # no reflection in the range, or far too many
            continue
        likeness[place] = cells[0][0]
        starts += [(score, crystal, place) for score, crystal in cells]
    best: dict[int, Refined] = {}
    for _, crystal, place in promising(starts, candidates, options.refined):
        refined = refined_or_none(crystal, target, options)
        if refined is not None and (place not in best or refined.r_wp < best[place].r_wp):
            best[place] = refined
    best = {
        place: with_free_widths(in_supergroup(Description(refined, target, options)))
        for place, refined in best.items()
    }
    return [
        Solution(candidate, likeness.get(place, 0.0), best.get(place))
        for place, candidate in enumerate(candidates)
    ]


def promising(starts: Sequence[Start], candidates: Sequence[Candidate], count: int) -> list[Start]:
    """The starts to refine: those most like the pattern, few of one setting.

    A subgroup has more freedom to look like the pattern than the group itself, so that a setting's
    probability counts a little; and its second cell, or its third draw, comes after other
    settings, since most often it leads to the same crystal.
    """
    order = sorted(starts, key=lambda one: -one[0] - PRIOR * _log_prior(candidates[one[2]]))
    seen: dict[Request, int] = {}
    first: list[Start] = []
    later: list[Start] = []
    for start in order:
        setting = candidates[start[2]].request
        seen[setting] = seen.get(setting, 0) + 1
        (first if seen[setting] <= STARTS_OF_SETTING else later).append(start)
    return (first + later)[:count]


def _log_prior(candidate: Candidate) -> float:
    """Logarithm of the probability of a setting; 0 where the request left nothing open."""
    choice = candidate.request.choice
    return 0.0 if choice is None else math.log(max(choice.probability, LEAST_PROBABILITY))


def refined_or_none(crystal: Crystal, target: Target, options: SolveOptions) -> Refined | None:
    """A refinement, given up where the start is hopeless; None where atoms collide or it fails."""
    try:
        refined = refine_in_stages(crystal, target, orientation=options.orientation)
    except (LangevinXtalError, np.linalg.LinAlgError, ValueError):
        return None
    if shortest_distance(refined.crystal) < NEAREST:
        return None
    return refined


class Description:
    """A refined crystal, and the same with peak widths that may change with the angle, as by
    Caglioti."""

    def __init__(self, refined: Refined, target: Target, options: SolveOptions) -> None:
        self.refined, self.target, self.options = refined, target, options

    @cached_property
    def freer(self) -> Refined:
        """Refined with free widths, when it is first asked for."""
        return refine(
            self.refined.crystal,
            self.target,
            self.refined.profile,
            orientation=self.options.orientation,
            caglioti=True,
        )


def with_free_widths(described: Description) -> Refined:
    """A refinement that explains the pattern, or nearly, with peak widths that may change with
    the angle; as given where that is no better.

    With one width for all angles, split peaks of a subgroup make up for the widths.
    """
    refined = described.refined
    if refined.gof > NEARLY * described.options.good_gof:
        return refined
    freer = described.freer
    collapsed = shortest_distance(freer.crystal) < NEAREST
    better = penalised(freer, freer.gof) < penalised(refined, freer.gof)
    return freer if better and not collapsed else refined


def in_supergroup(described: Description) -> Description:
    """The crystal in the highest supergroup that fits as well, parameters weighed; or as given.

    A crystal sampled in a subgroup may be refined to the structure of a supergroup: it is that
    structure then. The two are compared with peak widths that may change with the angle; else the
    splitting of peaks in the subgroup makes up for a width that may not.
    """
    refined = described.refined
    crystal = refined.crystal
    frac, site = crystal.atoms()
    tried = {crystal.group}
    for symprec in SUPERGROUP_SYMPRECS:
        try:
            unit = asymmetric_unit(crystal.lattice, frac, crystal.numbers[site], symprec)
        except RejectError:
            continue
        if unit.group in tried:
            continue
        tried.add(unit.group)
        found = refined_or_none(unit, described.target, described.options)
        if found is None or found.parameters >= refined.parameters:
            continue
        if refined.r_wp < FAR_BETTER * found.r_wp:
            continue
        other = Description(found, described.target, described.options)
        own, others = described.freer, other.freer
        best = min(own.gof, others.gof)
        if penalised(others, best) <= penalised(own, best):
            return other
    return described


def penalised(refined: Refined, gof: float, log_prior: float = 0.0) -> float:
    """R_wp times N^(p/2M) P^(-1/M) for p parameters, N points and a prior probability P, as the
    Bayesian information criterion weighs them: a description of lower symmetry, or an improbable
    one, has to fit better than noise lets it.

    M is N over the square of ``gof``, the best goodness of fit of those compared: what no crystal
    explains is an error of the model, and is counted as noise.
    """
    points = len(refined.pattern)
    exponent = (refined.parameters * math.log(points) / 2 - log_prior) / points
    return float(refined.r_wp * math.exp(exponent * max(1.0, gof) ** 2))


def shortest_distance(crystal: Crystal) -> float:
    """Between atoms of a crystal, its images included [Å]."""
    return min_distance(crystal.lattice, crystal.atoms()[0])


class _Search:
    """Which settings the next samples are drawn of."""

    def __init__(
        self, request: Request, model: CrystalModel, seed: int, options: SolveOptions
    ) -> None:
        self.request, self.options = request, options
        self.spread = Spread(request, model, options.spread) if request.leaves_choice else None
        self.next = 0
        self.value: dict[Request, float] = {}
        self.draws: dict[Request, int] = {}

    def next_requests(self, count: int) -> list[Request]:
        """Concrete requests of the next round."""
        if self.spread is None:
            return [self.request] * count
        best = sorted(self.value, key=lambda r: -self.value[r] / (1 + 0.1 * self.draws[r]))
        again = min(count // 2 if self.value else 0, 2 * len(best))
        requests: list[Request] = []
        for k in range(again):
            requests.append(best[k // 2])
        while len(requests) < count:
            try:
                request = self.spread[self.next]
            except RequestError:
                break
            self.next += 1
            with_cell = self._in_cell(request)
            if with_cell is not None:
                requests.append(with_cell)
            elif self.next > MOST_MISFITS:
                break
        return requests

    def _in_cell(self, request: Request) -> Request | None:
        """A setting in the known cell, where there is one; None where it does not fit."""
        if self.options.cell is None:
            return request
        try:
            return Request(
                request.space_group,
                formula=request.formula,
                z=request.z,
                assignment=request.assignment,
                choice=request.choice,
                lattice=self.options.cell,
            )
        except RequestError:
            return None

    def learn(self, solutions: Sequence[Solution]) -> None:
        """Note how well the settings of a round did."""
        for one in solutions:
            key = one.candidate.request
            own = one.likeness if one.refined is None else max(one.likeness, 1 - one.r_wp)
            self.value[key] = max(self.value.get(key, 0.0), own)
            self.draws[key] = self.draws.get(key, 0) + 1
