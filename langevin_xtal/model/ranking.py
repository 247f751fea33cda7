"""A learned ranking of the assignments of Wyckoff positions that a request has.

The assignments of a group and composition are enumerated
(:mod:`langevin_xtal.symmetry.assignments`); a softmax over their scores makes them a distribution:

    p(a | group, elements, counts) = exp s(a) / Σ_b exp s(b).

A score has two parts. A network reads which element is placed where: sites add up to elements,
elements to the assignment, so that the order of neither matters. A memory of training crystals
answers how often the same placement was seen, up to a permutation of the elements, each crystal
counting the more the more its elements resemble the ones asked for, site by site; what resembles
is learned with the rest.

With a prior (:class:`~langevin_xtal.model.prior.WyckoffPrior`) at hand, the :data:`RESCORED`
best share what probability they have together anew, in proportion to exp s(a) prior(a)^w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.beam import BEAM, likely_assignments
from langevin_xtal.model.memory import (
    ELEMENTS,
    MEMORY_TYPES,
    Encoded,
    Memory,
    encode,
    mendeleev_order,
    remember,
    remembered,
)
from langevin_xtal.model.prior import (
    WyckoffPrior,
    element_features,
    position_features,
)
from langevin_xtal.symmetry.assignments import LIMIT, Assignment, assignments, canonical_all

NEVER = -12.0  # log-likeness of an assignment that no remembered crystal has
COUNT_FEATURES = 4
MEMORY_FEATURES = 6
RESCORED = 64
"""Best assignments of a request of which the prior is asked, too."""

RANGES: dict[str, tuple[int, int]] = {"width": (1, 1024), "similarity": (1, 1024)}
"""What a ranker may be: its file is not trusted, and memory is taken on its word."""


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Size of a ranker."""

    width: int = 64
    """Features of a placement."""
    similarity: int = 32
    """Dimensions of the space in which elements resemble each other."""
    prior_weight: float = 0.3
    """Share w of the prior's log-likelihood in the score; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.prior_weight <= 10.0:
            raise InputError(f"prior_weight is {self.prior_weight}; it must lie between 0 and 10")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")


def shared_anew(
    log_p: NDArray[np.float64], prior: NDArray[np.float64], weight: float
) -> NDArray[np.float64]:
    """(n,) log-probabilities in proportion to p·prior^weight, with the same sum as before."""
    score = log_p + weight * prior
    result: NDArray[np.float64] = score - np.logaddexp.reduce(score) + np.logaddexp.reduce(log_p)
    return result


class Batch(NamedTuple):
    """Several encoded requests end to end."""

    group: Tensor  #: (B,)
    element: Tensor  #: (E,) atomic numbers
    element_request: Tensor  #: (E,) request of every element
    atoms: Tensor  #: (E,) atoms of every element
    placed_element: Tensor  #: (P,) element of every placement
    placed_row: Tensor  #: (P,) position row of every placement
    unit_element: Tensor  #: (U,) element of every unit
    unit_of: Tensor  #: (S,) unit of every site
    site_of: Tensor  #: (S,) placement of every site
    unit: Tensor  #: (M,) unit of every member of an assignment
    member_of: Tensor  #: (M,) assignment of every member
    request: Tensor  #: (N,) request of every assignment
    match_assignment: Tensor  #: (Q,)
    match_template: Tensor  #: (Q,)
    match_roles: Tensor  #: (Q, K)


def collate(parts: Sequence[Encoded]) -> Batch:
    """One batch of several requests."""
    sizes = np.array(
        [(len(p.elements), len(p.placed), len(p.unit_element), len(p.units)) for p in parts]
    )
    start = np.concatenate([np.zeros((1, 4), dtype=np.int64), np.cumsum(sizes, axis=0)])
    e, p, u, n = start[:-1].T

    def joined(arrays: list[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays))

    def moved(name: str, offset: NDArray[np.int64]) -> Tensor:
        return joined([getattr(x, name) + o for x, o in zip(parts, offset, strict=True)])

    return Batch(
        group=torch.tensor([x.group for x in parts]),
        element=joined([x.elements for x in parts]),
        element_request=torch.from_numpy(np.repeat(np.arange(len(parts)), sizes[:, 0])),
        atoms=joined([x.counts for x in parts]),
        placed_element=joined([x.placed[:, 0] + o for x, o in zip(parts, e, strict=True)]),
        placed_row=joined([x.placed[:, 1] for x in parts]),
        unit_element=moved("unit_element", e),
        unit_of=moved("unit_of", u),
        site_of=moved("site_of", p),
        unit=joined([x.units.ravel() + o for x, o in zip(parts, u, strict=True)]),
        member_of=joined(
            [
                np.repeat(np.arange(o, o + len(x.units)), x.units.shape[1])
                for x, o in zip(parts, n, strict=True)
            ]
        ),
        request=torch.from_numpy(np.repeat(np.arange(len(parts)), sizes[:, 3])),
        match_assignment=joined([x.match[:, 0] + o for x, o in zip(parts, n, strict=True)]),
        match_template=joined([x.match[:, 1] for x in parts]),
        match_roles=joined([x.roles for x in parts]),
    )


class AssignmentRanker(nn.Module):
    """Scores of the assignments of a request."""

    def __init__(self, config: RankerConfig | None = None, memory: Memory | None = None) -> None:
        super().__init__()
        self.config = config or RankerConfig()
        self.memory = memory or remember([])[0]
        w, rows = self.config.width, len(position_features())
        features = element_features().shape[1]
        self.element = nn.Embedding(ELEMENTS, w)
        self.describe_element = nn.Linear(features, w)
        self.count = nn.Linear(COUNT_FEATURES, w)
        self.group = nn.Embedding(231, w)
        self.compose = _layers(w, w, w)
        self.position = nn.Embedding(rows, w)
        self.describe = nn.Linear(position_features().shape[1], w)
        self.place = _layers(3 * w, w, w)
        self.gather = _layers(2 * w, w, w)
        self.judge = _layers(3 * w + MEMORY_FEATURES, 2 * w, 1)
        self.weigh = nn.Linear(MEMORY_FEATURES, 1)
        self.resemble = nn.Embedding(ELEMENTS, self.config.similarity)
        self.resemble_described = nn.Linear(features, self.config.similarity, bias=False)
        for table, spread in ((self.element, 0.1), (self.position, 0.1), (self.group, 0.1)):
            nn.init.normal_(table.weight, std=spread)
        nn.init.normal_(self.resemble.weight, std=0.05)
        nn.init.normal_(self.resemble_described.weight, std=0.1)
        nn.init.zeros_(self.weigh.weight)

    def log_probabilities(
        self,
        number: int,
        elements: Sequence[int],
        counts: Sequence[int],
        assignments: Sequence[Assignment],
        prior: WyckoffPrior | None = None,
    ) -> NDArray[np.float64]:
        """(n,) log-probability of each of the assignments given, which count as all there are.

        Parameters
        ----------
        number
            Space-group number.
        elements
            Atomic numbers, each once, in any order.
        counts
            Atoms of each element in the conventional cell.
        assignments
            What :func:`langevin_xtal.symmetry.assignments.assignments` tells of these counts.
        prior
            Asked of the best ones, too.
        """
        if not assignments:
            return np.zeros(0)
        order = mendeleev_order(elements)
        names = canonical_all(number, [tuple([a[k] for k in order]) for a in assignments])
        request = [elements[k] for k in order], [counts[k] for k in order]
        with torch.inference_mode():
            scores = self.scores(collate([encode(self.memory, number, *request, names)]))
            result: NDArray[np.float64] = scores.double().log_softmax(0).numpy()
        if prior is not None and self.config.prior_weight and len(names) > 1:
            best = np.argsort(-result, kind="stable")[:RESCORED]
            by_prior = prior.of_assignments(number, request[0], [names[k] for k in best])
            result[best] = shared_anew(result[best], by_prior, self.config.prior_weight)
        return result

    def candidates(
        self,
        number: int,
        elements: Sequence[int],
        counts: Sequence[int],
        *,
        limit: int = LIMIT,
        prior: WyckoffPrior | None = None,
        beam: int = BEAM,
    ) -> tuple[list[Assignment], bool]:
        """Assignments worth looking at: those of remembered crystals, then all in order.

        Parameters
        ----------
        elements, counts
            Atomic numbers, and atoms of each in the conventional cell.
        limit
            Assignments listed in order, at most.
        prior
            Where the limit cuts some off, those that it finds likely are listed, too
            (:func:`~langevin_xtal.model.beam.likely_assignments`).
        beam
            Width of that search.

        Returns
        -------
        tuple
            The assignments, each once, and whether they are all there are.
        """
        found = assignments(number, counts, limit=limit)
        in_order = list(found)
        likely = [a for a, _, _ in remembered(self.memory, number, counts)]
        if prior is not None and not found.complete:
            likely += likely_assignments(prior, number, elements, counts, beam=beam)
        return list(dict.fromkeys([*likely, *in_order])), found.complete

    def to_tensors(self) -> dict[str, Tensor]:
        """Weights and memory, as :meth:`from_tensors` takes them."""
        tensors = dict(self.state_dict())
        for name, kind in MEMORY_TYPES.items():
            tensors[f"memory.{name}"] = torch.from_numpy(getattr(self.memory, name)).to(kind)
        return tensors

    @classmethod
    def from_tensors(cls, config: RankerConfig, tensors: Mapping[str, Tensor]) -> AssignmentRanker:
        """A ranker from its tensors, ready to rank.

        Raises
        ------
        CheckpointError
            When they do not fit the configuration, or the memory is damaged.
        """
        state = {k: v for k, v in tensors.items() if not k.startswith("memory.")}
        try:
            tables = {name: tensors[f"memory.{name}"].long().numpy() for name in MEMORY_TYPES}
            ranker = cls(config, Memory(**tables))
            ranker.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the ranker does not fit its configuration ({reason})"
            ) from None
        return ranker.eval().requires_grad_(False)

    def scores(
        self, batch: Batch, *, dropout: float = 0.0, without: Tensor | None = None
    ) -> Tensor:
        """(N,) of every assignment of a batch.

        Parameters
        ----------
        dropout
            Share of the hidden features zeroed in training.
        without
            (B,) row in the memory that each request must not see: its own.
        """
        element = self.element(batch.element)
        element = element + self.describe_element(element_features()[batch.element])
        sizes = _count_features(batch)
        state = element + self.count(sizes)
        context = self.group(batch.group)
        context = context.index_add(0, batch.element_request, _drop(self.compose(state), dropout))
        about = self.position(batch.placed_row)
        about = about + self.describe(position_features()[batch.placed_row])
        here = batch.placed_element
        placed = torch.cat([state[here], about, context[batch.element_request[here]]], 1)
        placed = self.place(_drop(placed, dropout))
        unit = torch.zeros(len(batch.unit_element), placed.shape[1])
        unit = unit.index_add(0, batch.unit_of, placed[batch.site_of])
        unit = self.gather(_drop(torch.cat([unit, state[batch.unit_element]], 1), dropout))
        whole = torch.zeros(len(batch.request), unit.shape[1])
        whole = whole.index_add(0, batch.member_of, unit[batch.unit])
        seen = self._recall(batch, without)
        around = context[batch.request]
        state = torch.cat([whole, around, whole * around, seen], 1)
        judged = self.judge(_drop(state, dropout)) + self.weigh(seen)
        return judged.squeeze(1)

    def _recall(self, batch: Batch, without: Tensor | None) -> Tensor:
        """(N, MEMORY_FEATURES) what the memory knows of every assignment."""
        memory = self._tables
        first = memory.start[batch.match_template]
        size = memory.start[batch.match_template + 1] - first
        match = torch.repeat_interleave(torch.arange(len(size)), size)
        ends = size.cumsum(0)
        row = torch.arange(len(match)) - (ends - size - first)[match]
        assignment = batch.match_assignment[match]
        if without is not None:
            other = row != without[batch.request[assignment]]
            match, row, assignment = match[other], row[other], assignment[other]
        apart = self.distances()[batch.match_roles[match], memory.elements[row]].sum(1)
        count = torch.zeros(len(batch.request)).index_add(0, assignment, torch.ones(len(row)))
        ways = torch.zeros(len(batch.request)).index_add(
            0, batch.match_assignment, torch.ones(len(batch.match_assignment))
        )
        least = torch.full((len(batch.request),), torch.inf)
        least = least.scatter_reduce(0, assignment, apart.detach(), "amin")
        near = torch.zeros(len(batch.request))
        near = near.index_add(0, assignment, (least[assignment] - apart).exp())
        known = count > 0
        ways = ways.clamp(min=1)
        like = torch.where(known, near.clamp(min=1e-30).log() - least.nan_to_num(posinf=0), NEVER)
        like = torch.where(known, like - ways.log(), NEVER)
        seen = count / ways
        total = torch.zeros(len(batch.group)).index_add(0, batch.request, seen)
        share = (seen + 0.1).log() - (total + 1).log()[batch.request]
        return torch.stack(
            [
                like.clamp(min=NEVER) / 4,
                known.float(),
                seen.log1p() / 4,
                share / 4,
                (total.log1p() / 4)[batch.request],
                torch.where(known, (-least).clamp(min=NEVER) / 4, NEVER / 4),
            ],
            1,
        )

    def resemblance(self) -> Tensor:
        """(119, similarity) place of every element: near each other those on the same sites."""
        place: Tensor = self.resemble.weight + self.resemble_described(element_features())
        return place

    def distances(self) -> Tensor:
        """(119, 119) squared distance of elements in the space of resemblance."""
        place = self.resemblance()
        return (place.unsqueeze(0) - place.unsqueeze(1)).square().sum(2)

    @cached_property
    def _tables(self) -> _Tables:
        memory = self.memory
        return _Tables(torch.from_numpy(memory.start), torch.from_numpy(memory.elements))


class _Tables(NamedTuple):
    start: Tensor
    elements: Tensor


def _layers(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inside, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outside),
    )


def _drop(x: Tensor, share: float) -> Tensor:
    return functional.dropout(x, share, training=share > 0)


def _count_features(batch: Batch) -> Tensor:
    count = batch.atoms.float()
    total = torch.zeros(len(batch.group)).index_add(0, batch.element_request, count)
    kinds = torch.zeros(len(batch.group)).index_add(
        0, batch.element_request, torch.ones(len(count))
    )
    total, kinds = total[batch.element_request], kinds[batch.element_request]
    return torch.stack([count.log(), (count / total).log(), total.log() / 4, kinds / 4], 1)
