"""A learned prior over Wyckoff positions: where the sites of a request go before positions are.

With sites and group given, which Wyckoff position each site takes is a discrete question that
noise on positions answers poorly. The prior factorises over the sites in a canonical order
(by element; sites of one element from special to general):

    p(w_1 … w_n | group, elements) = Π_k p(w_k | group, elements, w_1 … w_{k-1}),

each factor a softmax over the group's positions from a small network that sees the composition,
the sites placed so far, the element at hand and the elements to come. Positions without freedom
hold one site only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.crystal.elements import period_and_group
from langevin_xtal.crystal.request import Request
from langevin_xtal.model.network import ELEMENTS, Linear
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.wyckoff import table_start, wyckoff_positions

WIDTH = 96
FEATURES = 7


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


@cache
def element_features() -> Tensor:
    """(119, 25) row and column of the periodic table: kin behave alike. Row 0 is empty."""
    table = torch.zeros(ELEMENTS, 25)
    for number in range(1, ELEMENTS):
        period, group = period_and_group(number)
        table[number, period - 1] = 1.0
        table[number, 6 + group] = 1.0
    return table


@cache
def has_freedom() -> Tensor:
    """(1731,) bool: whether a position may hold more than one site."""
    return position_features()[:, 0] == 0


class WyckoffPrior(nn.Module):
    """Autoregressive distribution over the Wyckoff positions of a request's sites."""

    def __init__(self) -> None:
        super().__init__()
        w, rows = WIDTH, len(position_features())
        self.element = nn.Embedding(ELEMENTS, w)
        self.describe_element = Linear(element_features().shape[1], w)
        self.group = nn.Embedding(231, w)
        self.position = nn.Embedding(rows, w)
        self.describe = Linear(FEATURES, w)
        self.place = nn.Sequential(Linear(3 * w, w), nn.SiLU(), Linear(w, w))
        self.trunk = nn.Sequential(
            Linear(6 * w, 2 * w), nn.SiLU(), Linear(2 * w, 2 * w), nn.SiLU(), Linear(2 * w, w)
        )
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.normal_(self.position.weight, std=0.1)
        nn.init.normal_(self.element.weight, std=0.1)

    def logits(
        self, group: Tensor, numbers: Tensor, chosen: Tensor, dropout: float = 0.0
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

        Returns
        -------
        Tensor
            (B, S, W) with W the most positions of any group; -inf where not allowed.
        """
        real = (numbers > 0).unsqueeze(2).to(torch.float32)
        described = self._rows(self.describe_element, element_features()[numbers])
        element = (self.element(numbers) + described) * real
        about = self._about(chosen)
        placed = self._rows(self.place, torch.cat([element, about, element * about], 2)) * real
        before = placed.cumsum(1) - placed
        same = (numbers.unsqueeze(2) == numbers.unsqueeze(1)).to(torch.float32).tril(-1)
        of_element = torch.bmm(same, about)
        total = element.sum(1, keepdim=True).expand_as(element)
        to_come = total - element.cumsum(1)
        group_state = self.group(group).unsqueeze(1).expand_as(element)
        state = torch.cat([group_state, total, to_come, element, before, of_element], dim=2)
        state = functional.dropout(state, dropout, training=dropout > 0)
        hidden = self._rows(self.trunk, state)
        table, inside = group_rows(group)
        keys = self._about(table)  # (B, W, width)
        scores = torch.bmm(hidden, keys.transpose(1, 2)) / WIDTH**0.5
        scores = scores + self.bias[table].unsqueeze(1)
        return scores.masked_fill(~self._allowed(numbers, chosen, table, inside), -torch.inf)

    def log_likelihood(
        self, group: Tensor, numbers: Tensor, chosen: Tensor, dropout: float = 0.0
    ) -> Tensor:
        """(B,) log-probability of whole assignments."""
        logits = self.logits(group, numbers, chosen, dropout)
        first = torch.from_numpy(table_start())[group - 1]
        local = (chosen - first.unsqueeze(1)).clamp(min=0)
        picked = logits.log_softmax(2).gather(2, local.unsqueeze(2)).squeeze(2)
        return torch.where(numbers > 0, picked, 0.0).sum(1)

    def draw(
        self, requests: Sequence[Request], uniforms: Tensor, temperature: float = 1.0
    ) -> list[list[int]]:
        """Positions (indices within the group) of every request's sites, in the request's order.

        Parameters
        ----------
        uniforms
            (B, S) numbers in (0, 1), S at least the sites of the longest request.
        temperature
            Below 1, likelier assignments are drawn more often.
        """
        group = torch.tensor([r.space_group.number for r in requests])
        orders = [np.argsort(r.numbers, kind="stable") for r in requests]
        longest = max(len(r.numbers) for r in requests)
        numbers = torch.zeros(len(requests), longest, dtype=torch.int64)
        for k, (r, order) in enumerate(zip(requests, orders, strict=True)):
            numbers[k, : len(order)] = torch.tensor(np.array(r.numbers)[order])
        first = torch.from_numpy(table_start())[group - 1]
        chosen = first.unsqueeze(1).repeat(1, longest)
        with torch.inference_mode():
            for s in range(longest):
                scores = self.logits(group, numbers, chosen)[:, s]
                share = (scores.double() / temperature).softmax(1).cumsum(1)
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

    def _about(self, rows: Tensor) -> Tensor:
        described = self._rows(self.describe, position_features()[rows])
        return self.position(rows) + described

    @staticmethod
    def _rows(layer: nn.Module, x: Tensor) -> Tensor:
        flat: Tensor = layer(x.flatten(0, 1))
        return flat.view(*x.shape[:2], -1)

    @staticmethod
    def _allowed(numbers: Tensor, chosen: Tensor, table: Tensor, inside: Tensor) -> Tensor:
        """(B, S, W): unused where there is no freedom; not before the element's last position."""
        earlier = torch.ones(numbers.shape[1], numbers.shape[1]).tril(-1).bool()
        same = (chosen.unsqueeze(2) == table.unsqueeze(1)) & (numbers > 0).unsqueeze(2)
        placed = same.float().cumsum(1) - same.float()
        used = placed > 0
        blocked = used & ~has_freedom()[table].unsqueeze(1)
        kin = (numbers.unsqueeze(2) == numbers.unsqueeze(1)) & earlier
        last = torch.where(kin, chosen.unsqueeze(1), -1).amax(2)  # (B, S)
        return inside.unsqueeze(1) & ~blocked & (table.unsqueeze(1) >= last.unsqueeze(2))


def group_rows(group: Tensor) -> tuple[Tensor, Tensor]:
    """(B, W) rows of each group's positions, and which of them are real."""
    start = torch.from_numpy(table_start())
    first, stop = start[group - 1], start[group]
    widest = int((start[1:] - start[:-1]).max())
    table = first.unsqueeze(1) + torch.arange(widest)
    inside = table < stop.unsqueeze(1)
    return torch.where(inside, table, first.unsqueeze(1)), inside
