"""A learned prior over Wyckoff positions: where the sites of a request go before positions are.

With sites and group given, which Wyckoff position each site takes is a discrete question that
noise on positions answers poorly. The prior factorises over the sites in a canonical order
(elements by Mendeleev number; sites of one element from special to general):

    p(w_1 … w_n | group, elements) = Π_k p(w_k | group, elements, w_1 … w_{k-1}),

each factor a softmax over the group's positions. A network reads the request first: its elements,
described by their properties and their numbers of sites, exchange messages pair by pair. Another
one then sees what it made of them, the sites placed so far, the element at hand and the elements
to come. Positions without freedom hold one site only.

Elements that resemble each other follow each other in the canonical order, so that a crystal and
the same crystal with an element substituted mostly have the same order.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.crystal.elements import period_and_group
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError
from langevin_xtal.model.network import ELEMENTS, Linear
from langevin_xtal.symmetry.assignments import Assignment
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.wyckoff import origin_shifts, table_start, wyckoff_positions

POSITION_FEATURES = 7
COUNTS = 8  # numbers of sites of one element distinguished
SITES = 12  # numbers of sites of a request distinguished
KINDS = 6  # numbers of elements of a request distinguished
BUMPS = 12  # of the Mendeleev number
SCORED = 256  # labellings scored at once

RANGES: dict[str, tuple[int, int]] = {"width": (1, 1024), "rounds": (0, 16), "blocks": (0, 16)}
"""What a prior may be: its file is not trusted, and memory is taken on its word."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Size of the prior; with widths in multiples of 32 its scores do not depend on the batch."""

    width: int = 96
    """Features of an element."""
    rounds: int = 2
    """Rounds of messages between the elements."""
    blocks: int = 2
    """Residual blocks of the network that scores positions."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")


@cache
def position_features() -> Tensor:
    """(1731, 7) of every Wyckoff position: sizes, degrees of freedom."""
    rows = []
    for number in range(1, 231):
        group = SpaceGroup(number)
        for w in wyckoff_positions(number):
            freedom = [float(w.freedom == k) for k in range(4)]
            primitive = w.multiplicity / len(group.centring)
            sizes = [np.log(primitive), np.log(w.multiplicity / group.order), np.log(group.order)]
            rows.append([*freedom, *sizes])
    return torch.tensor(rows, dtype=torch.float32)


COVALENT_RADIUS = 4  # its column


@cache
def element_properties() -> NDArray[np.float64]:
    """(119, 9) Mendeleev number, electronegativity, radii, valence electrons; NaN where unknown.

    The columns and sources are those of ``scripts/make_element_properties.py``.
    """
    table = np.full((ELEMENTS, 9), np.nan)
    source = resources.files("langevin_xtal.crystal").joinpath("element_properties.csv")
    for number, _, *values in list(csv.reader(source.read_text("utf-8").splitlines()))[1:]:
        table[int(number)] = [float(v) if v else np.nan for v in values]
    return table


@cache
def covalent_radii() -> NDArray[np.float64]:
    """(119,) of each atomic number [Å]; the mean where it is not known."""
    radii = element_properties()[:, COVALENT_RADIUS]
    return np.where(np.isnan(radii), np.nanmean(radii), radii)


@cache
def element_rank() -> NDArray[np.int64]:
    """(119,) place of each atomic number in the order of Mendeleev numbers.

    Elements without one come last, by atomic number; 0, no element, comes first.
    """
    key = element_properties()[:, 0].copy()
    key[0] = -np.inf
    rank = np.empty(ELEMENTS, dtype=np.int64)
    rank[np.argsort(key, kind="stable")] = np.arange(ELEMENTS)  # NaN sorts last
    return rank


@cache
def element_features() -> Tensor:
    """(119, 46) features by which elements resemble each other: place in the periodic table,
    standardised properties.

    The last columns are bumps along the Mendeleev number. Unknown properties count as average,
    and row 0 is empty.
    """
    table = np.zeros((ELEMENTS, 25))
    for number in range(1, ELEMENTS):
        period, group = period_and_group(number)
        table[number, period - 1] = 1.0
        table[number, 6 + group] = 1.0
    known = element_properties()
    known = (known - np.nanmean(known, axis=0)) / np.nanstd(known, axis=0)
    places = np.linspace(-1.7, 1.7, BUMPS)  # uniform numbers end at ±√3
    bumps = np.exp(-(((known[:, :1] - places) / 0.3) ** 2))
    features = np.concatenate([table, np.nan_to_num(known), np.nan_to_num(bumps)], axis=1)
    return torch.from_numpy(features).float()


@cache
def has_freedom() -> Tensor:
    """(1731,) bool: whether a position may hold more than one site."""
    return position_features()[:, 0] == 0


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """(B, S, in) to (B, S, out) through a layer of rows."""
    flat: Tensor = layer(x.flatten(0, 1))
    return flat.view(*x.shape[:2], -1)


def _one_hot(count: Tensor, most: int) -> Tensor:
    """Counts from 0, the last column for ``most - 1`` and more."""
    return functional.one_hot(count.clamp(0, most - 1), most).to(torch.float32)


def _dropped(x: Tensor, share: float) -> Tensor:
    return functional.dropout(x, share, training=share > 0)


class Exchange(nn.Module):
    """Every element hears from every element of its request."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own, self.other = Linear(width, width), Linear(width, width)
        self.update = nn.Sequential(Linear(3 * width, width), nn.SiLU())
        self.result = Linear(width, width)

    def forward(self, elements: Tensor, real: Tensor, request: Tensor, dropout: float) -> Tensor:
        """(B, E, width) to the same; ``real`` is (B, E, 1), ``request`` (B, width)."""
        x = self.norm(elements)
        pair = _rows(self.own, x).unsqueeze(2) + _rows(self.other, x).unsqueeze(1)
        # a running sum adds in the same order whatever the padding
        heard = (functional.silu(pair) * real.unsqueeze(1)).cumsum(2)[:, :, -1]
        state = torch.cat([x, heard, request.unsqueeze(1).expand_as(x)], 2)
        return elements + _rows(self.result, _dropped(_rows(self.update, state), dropout)) * real


class Block(nn.Module):
    """A residual layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU())
        self.second = Linear(width, width)

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        """(M, width) to the same."""
        result: Tensor = x + self.second(_dropped(self.first(x), dropout))
        return result


@dataclass(frozen=True)
class Reading:
    """What the first network made of B requests of at most S sites."""

    state: Tensor  #: (B, S, ·) group, all elements, elements to come, counts
    element: Tensor  #: (B, S, width) of each site, 0 for padding
    first: Tensor  #: (B, S) place of the first site of the same element


class WyckoffPrior(nn.Module):
    """Autoregressive distribution over the Wyckoff positions of a request's sites."""

    def __init__(self, config: PriorConfig | None = None) -> None:
        super().__init__()
        self.config = config or PriorConfig()
        w, rows = self.config.width, len(position_features())
        self.element = nn.Embedding(ELEMENTS, w)
        self.describe_element = Linear(element_features().shape[1], w)
        self.count = Linear(COUNTS + 1, w)
        self.group = nn.Embedding(231, w)
        self.size = Linear(SITES + KINDS, w)
        self.rounds = nn.ModuleList(Exchange(w) for _ in range(self.config.rounds))
        self.position = nn.Embedding(rows, w)
        self.describe = Linear(POSITION_FEATURES, w)
        self.place = nn.Sequential(Linear(3 * w, w), nn.SiLU(), Linear(w, w))
        self.enter = Linear(6 * w + 2 * COUNTS, 2 * w)
        self.blocks = nn.ModuleList(Block(2 * w) for _ in range(self.config.blocks))
        self.leave = nn.Sequential(nn.LayerNorm(2 * w), Linear(2 * w, w))
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.normal_(self.position.weight, std=0.1)
        nn.init.normal_(self.element.weight, std=0.1)
        nn.init.normal_(self.group.weight, std=0.3)

    def logits(
        self,
        group: Tensor,
        numbers: Tensor,
        chosen: Tensor,
        dropout: float = 0.0,
        shown: Tensor | None = None,
    ) -> Tensor:
        """Scores of the next position for every site, given those before it.

        Parameters
        ----------
        group
            (B,) space-group numbers.
        numbers
            (B, S) atomic numbers in canonical order, 0 for padding.
        chosen
            (B, S) rows of the position table of the sites before; entries from a site on do not
            change its scores.
        dropout
            Share of the hidden features zeroed in training.
        shown
            (119,) atomic number to show to the network in place of each.

        Returns
        -------
        Tensor
            (B, S, W) with W the most positions of any group; -inf where not allowed.
        """
        reading = self.read(group, numbers, dropout, shown)
        return self.scores(reading, group, numbers, chosen, 0, dropout)

    def log_likelihood(
        self,
        group: Tensor,
        numbers: Tensor,
        chosen: Tensor,
        dropout: float = 0.0,
        shown: Tensor | None = None,
    ) -> Tensor:
        """(B,) log-probability of whole assignments; parameters as for :meth:`logits`."""
        logits = self.logits(group, numbers, chosen, dropout, shown)
        first = torch.from_numpy(table_start())[group - 1]
        local = (chosen - first.unsqueeze(1)).clamp(min=0)
        picked = logits.log_softmax(2).gather(2, local.unsqueeze(2)).squeeze(2)
        return torch.where(numbers > 0, picked, 0.0).sum(1)

    def of_assignments(
        self, number: int, elements: Sequence[int], assignments: Sequence[Assignment]
    ) -> NDArray[np.float64]:
        """(n,) log-likelihood of assignments, given how many sites each element has.

        An assignment stands for all labellings of the same crystals. They add up, where those that
        a shift of the origin turns into each other count once: the prior knows the first of them.

        Parameters
        ----------
        number
            Space-group number.
        elements
            Atomic numbers, each once, in any order.
        assignments
            Of each element the indices of its positions within the group.
        """
        if not assignments:
            return np.zeros(0)
        order = np.argsort(element_rank()[list(elements)], kind="stable").tolist()
        labelled = [_labellings(number, [a[k] for k in order]) for a in assignments]
        numbers, chosen = _padded(number, [elements[k] for k in order], list(chain(*labelled)))
        group = torch.full((len(numbers),), number)
        with torch.inference_mode():
            parts = [
                self.log_likelihood(*part)
                for part in zip(*(x.split(SCORED) for x in (group, numbers, chosen)), strict=True)
            ]
        each = torch.cat(parts).double().numpy()
        start = np.cumsum([0, *map(len, labelled)])
        return np.array([np.logaddexp.reduce(each[a:b]) for a, b in pairwise(start)])

    def draw(
        self, requests: Sequence[Request], uniforms: Tensor, temperature: Tensor
    ) -> list[list[int]]:
        """Positions (indices within the group) of every request's sites, in the request's order.

        Parameters
        ----------
        uniforms
            (B, S) numbers in (0, 1), S at least the sites of the longest request.
        temperature
            (B,) of each; below 1, likelier assignments are drawn more often.
        """
        group = torch.tensor([r.space_group.number for r in requests])
        orders = [np.argsort(element_rank()[list(r.numbers)], kind="stable") for r in requests]
        longest = max(len(r.numbers) for r in requests)
        numbers = torch.zeros(len(requests), longest, dtype=torch.int64)
        for k, (r, order) in enumerate(zip(requests, orders, strict=True)):
            numbers[k, : len(order)] = torch.tensor(np.array(r.numbers)[order])
        first = torch.from_numpy(table_start())[group - 1]
        chosen = first.unsqueeze(1).repeat(1, longest)
        with torch.inference_mode():
            reading = self.read(group, numbers)
            for s in range(longest):
                upto = numbers[:, : s + 1], chosen[:, : s + 1]
                scores = self.scores(reading, group, *upto, s)[:, 0]
                share = (scores.double() / temperature[:, None]).softmax(1).cumsum(1)
                pick = (uniforms[:, s : s + 1] * share[:, -1:] > share).sum(1)
                chosen[:, s] = first + pick
        local = (chosen - first.unsqueeze(1)).tolist()
        result = []
        for row, order in zip(local, orders, strict=True):
            mine = [0] * len(order)
            for place, site in enumerate(order):
                mine[site] = row[place]
            result.append(mine)
        return result

    def read(
        self, group: Tensor, numbers: Tensor, dropout: float = 0.0, shown: Tensor | None = None
    ) -> Reading:
        """What does not depend on the positions chosen; parameters as for :meth:`logits`."""
        real = numbers > 0
        new = real & (numbers != functional.pad(numbers, (1, 0))[:, :-1])
        of = new.cumsum(1) - 1  # (B, S) place of each site's element among the request's
        blank = torch.zeros(len(group), int(of.max()) + 1, dtype=torch.int64)
        kinds = blank.scatter_reduce(1, of, numbers, "amax")
        counts = blank.scatter_add(1, of, real.long())
        seen = kinds if shown is None else shown[kinds]
        here = (kinds > 0).unsqueeze(2).to(torch.float32)
        count = torch.cat([_one_hot(counts - 1, COUNTS), counts.unsqueeze(2).float().log1p()], 2)
        elements = self.element(seen) + _rows(self.describe_element, element_features()[seen])
        elements = (elements + _rows(self.count, count)) * here
        sizes = [_one_hot(counts.sum(1) - 1, SITES), _one_hot((kinds > 0).sum(1) - 1, KINDS)]
        request = self.group(group) + self.size(torch.cat(sizes, 1))
        for exchange in self.rounds:
            elements = exchange(elements, here, request, dropout)
        running = elements.cumsum(1)
        index = of.unsqueeze(2).expand(-1, -1, elements.shape[2])
        element = elements.gather(1, index) * real.unsqueeze(2)
        place = torch.arange(numbers.shape[1])
        first = torch.where(new, place, 0).cummax(1).values
        left = counts.gather(1, of) - (place - first) - 1
        state = [
            request.unsqueeze(1).expand_as(element),
            running[:, -1:].expand_as(element),
            running.gather(1, index),
            element,
            _one_hot(place - first, COUNTS),
            _one_hot(left, COUNTS),
        ]
        return Reading(torch.cat(state, 2), element, first)

    def scores(
        self,
        reading: Reading,
        group: Tensor,
        numbers: Tensor,
        chosen: Tensor,
        start: int,
        dropout: float = 0.0,
    ) -> Tensor:
        """(B, S - start, W) of the sites from ``start`` on, of S given."""
        element, first = (x[:, : numbers.shape[1]] for x in (reading.element, reading.first))
        about = self._about(chosen)
        placed = _rows(self.place, torch.cat([element, about, element * about], 2))
        before = functional.pad(placed.cumsum(1), (0, 0, 1, 0))[:, :-1]
        of_element = before - before.gather(1, first.unsqueeze(2).expand_as(before))
        known = reading.state[:, start : numbers.shape[1]]
        state = torch.cat([known, before[:, start:], of_element[:, start:]], 2)
        x = _rows(self.enter, _dropped(state, dropout)).flatten(0, 1)
        for block in self.blocks:
            x = block(x, dropout)
        hidden = self.leave(x).view(*state.shape[:2], -1)
        table, inside = group_rows(group)
        keys = self._about(table)  # (B, W, width)
        scores = torch.bmm(hidden, keys.transpose(1, 2)) / self.config.width**0.5
        scores = scores + self.bias[table].unsqueeze(1)
        allowed = self._allowed(numbers, chosen, table, inside)[:, start:]
        return scores.masked_fill(~allowed, -torch.inf)

    def _about(self, rows: Tensor) -> Tensor:
        described = _rows(self.describe, position_features()[rows])
        return self.position(rows) + described

    @staticmethod
    def _allowed(numbers: Tensor, chosen: Tensor, table: Tensor, inside: Tensor) -> Tensor:
        """(B, S, W): unused where there is no freedom; not before the element's last position."""
        earlier = torch.ones(numbers.shape[1], numbers.shape[1]).tril(-1).bool()
        same = (chosen.unsqueeze(2) == table.unsqueeze(1)) & (numbers > 0).unsqueeze(2)
        placed = same.float().cumsum(1) - same.float()
        used = placed > 0
        blocked = used & ~has_freedom()[table].unsqueeze(1)
        same_element = (numbers.unsqueeze(2) == numbers.unsqueeze(1)) & earlier
        last = torch.where(same_element, chosen.unsqueeze(1), -1).amax(2)  # (B, S)
        return inside.unsqueeze(1) & ~blocked & (table.unsqueeze(1) >= last.unsqueeze(2))


@cache
def _cosets(number: int) -> list[list[list[int]]]:
    """Permutations of a group's positions that differ by a shift of the origin, together."""
    shifts = origin_shifts(number)
    found = {
        tuple(sorted(map(tuple, shifts[:, row].tolist()))) for row in position_permutations(number)
    }
    return [[list(row) for row in coset] for coset in sorted(found)]


def _labellings(number: int, assignment: Sequence[Sequence[int]]) -> list[Assignment]:
    """Of each choice of axes the first labelling of all origins, each once."""
    firsts = {
        min(tuple(tuple(sorted([names[w] for w in own])) for own in assignment) for names in coset)
        for coset in _cosets(number)
    }
    return sorted(firsts)


def _padded(
    number: int, elements: Sequence[int], assignments: Sequence[Assignment]
) -> tuple[Tensor, Tensor]:
    """(B, S) atomic numbers and position rows of assignments, one site after the other."""
    first = int(table_start()[number - 1])
    longest = max((sum(map(len, a)) for a in assignments), default=0)
    numbers = torch.zeros(len(assignments), longest, dtype=torch.int64)
    chosen = torch.full_like(numbers, first)
    for n, assignment in enumerate(assignments):
        sites = [(z, first + w) for z, own in zip(elements, assignment, strict=True) for w in own]
        numbers[n, : len(sites)], chosen[n, : len(sites)] = torch.tensor(sites).T
    return numbers, chosen


def group_rows(group: Tensor) -> tuple[Tensor, Tensor]:
    """(B, W) rows of each group's positions, and which of them are real."""
    start = torch.from_numpy(table_start())
    first, stop = start[group - 1], start[group]
    widest = int((start[1:] - start[:-1]).max())
    table = first.unsqueeze(1) + torch.arange(widest)
    inside = table < stop.unsqueeze(1)
    return torch.where(inside, table, first.unsqueeze(1)), inside
