"""Likely assignments of a composition, where there are too many to look at each.

The prior (:class:`~langevin_xtal.model.prior.WyckoffPrior`) is asked for one site
after the other; of the partial assignments with the same numbers of sites the likeliest are kept
at every step (a beam search). Numbers of sites, which the prior takes as given, have the shares
that the order of enumeration suggests. Each step can be completed to the composition, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.model.prior import Reading, WyckoffPrior, element_rank
from langevin_xtal.symmetry.assignments import Assignment, canonical_all
from langevin_xtal.symmetry.site_by_site import Partial, SiteBySite
from langevin_xtal.symmetry.wyckoff import table_start

BEAM = 512
"""Partial assignments kept at each step."""


def likely_assignments(
    prior: WyckoffPrior,
    number: int,
    elements: Sequence[int],
    counts: Sequence[int],
    *,
    beam: int = BEAM,
) -> list[Assignment]:
    """Canonical assignments of a composition, likeliest first, about ``beam`` of them at most.

    Parameters
    ----------
    number
        Space-group number.
    elements
        Atomic numbers, each once, in any order.
    counts
        Atoms of each element in the conventional cell.
    beam
        Partial assignments kept at each step; at least one for all numbers of sites together.

    Raises
    ------
    RequestError
        For counts below 1 or above the most of an assignment, or none.
    """
    order = np.argsort(element_rank()[list(elements)], kind="stable").tolist()
    search = _Beam(prior, number, [elements[k] for k in order], [counts[k] for k in order], beam)
    found = search.run()
    place = np.argsort(order).tolist()
    names = canonical_all(number, [tuple([own[k] for k in place]) for own, _ in found])
    likely: dict[Assignment, float] = {}
    for name, (_, log_p) in zip(names, found, strict=True):
        likely[name] = max(log_p, likely.get(name, -np.inf))
    return sorted(likely, key=lambda name: (-likely[name], name))


_Row = tuple[int, Partial, tuple[int, ...], float]
"""A plan, what is placed so far, the positions chosen, the logarithm of its share."""


class _Beam:
    """One search. Rows of the beam are grouped by their numbers of sites, the plans."""

    def __init__(
        self,
        prior: WyckoffPrior,
        number: int,
        elements: Sequence[int],
        counts: Sequence[int],
        beam: int,
    ) -> None:
        self.prior, self.number = prior, number
        self.steps = SiteBySite(number, counts)
        shares = self.steps.site_counts()
        weight = np.sqrt(list(shares.values()))  # unlikely numbers of sites get a look, too
        width = np.floor(beam * weight / weight.sum()).astype(np.int64)
        plans = [
            (plan, int(n), float(np.log(share)))
            for (plan, share), n in zip(shares.items(), width, strict=True)
            if n
        ]
        self.plans = [plan for plan, _, _ in plans]
        self.width = [n for _, n, _ in plans]
        self.log_share = [log_share for _, _, log_share in plans]
        self.first = int(table_start()[number - 1])
        longest = max(map(sum, self.plans), default=0)
        self.numbers = torch.zeros(len(plans), longest, dtype=torch.int64)
        for k, plan in enumerate(self.plans):
            sites = [z for z, n in zip(elements, plan, strict=True) for _ in range(n)]
            self.numbers[k, : len(sites)] = torch.tensor(sites)

    def run(self) -> list[tuple[Assignment, float]]:
        """Assignments and the logarithm of their shares."""
        rows: list[_Row] = []
        for k, plan in enumerate(self.plans):
            begun = self.steps.start(plan)
            if begun is not None:
                rows.append((k, begun, (), self.log_share[k]))
        if not rows:
            return []
        done: list[tuple[Assignment, float]] = []
        with torch.inference_mode():
            group = torch.full((len(self.plans),), self.number)
            reading = self.prior.read(group, self.numbers)
            while rows:
                rows = self._extended(reading, rows)
                done += [
                    (_split(self.plans[k], chosen), log_p)
                    for k, _, chosen, log_p in rows
                    if len(chosen) == sum(self.plans[k])
                ]
                rows = [row for row in rows if len(row[2]) < sum(self.plans[row[0]])]
        return done

    def _extended(self, reading: Reading, rows: list[_Row]) -> list[_Row]:
        """All rows with one more site, the likeliest of each plan."""
        log_p = self._log_probabilities(reading, rows)
        total = log_p + np.array([row[3] for row in rows])[:, None]
        of_plan: dict[int, list[int]] = {}
        for n, row in enumerate(rows):
            of_plan.setdefault(row[0], []).append(n)
        extended = []
        for k, members in of_plan.items():
            mine = total[members]
            kept = 0
            for place in np.argsort(-mine, axis=None, kind="stable").tolist():
                n, position = divmod(place, mine.shape[1])
                if kept == self.width[k] or mine[n, position] == -np.inf:
                    break
                _, partial, chosen, _ = rows[members[n]]
                after = self.steps.after(partial, position)
                if after is not None:
                    extended.append((k, after, (*chosen, position), float(mine[n, position])))
                    kept += 1
        return extended

    def _log_probabilities(self, reading: Reading, rows: list[_Row]) -> NDArray[np.float64]:
        """(rows, W) of each position for the next site."""
        step = len(rows[0][2])
        plan, upto = torch.tensor([row[0] for row in rows]), slice(step + 1)
        chosen = self.first + torch.tensor([(*row[2], 0) for row in rows])
        mine = Reading(
            *(x[:, upto][plan] for x in (reading.state, reading.element, reading.first))
        )
        group = torch.full((len(rows),), self.number)
        scores: Tensor = self.prior.scores(mine, group, self.numbers[plan, upto], chosen, step)
        return scores[:, 0].double().log_softmax(1).numpy()


def _split(plan: tuple[int, ...], chosen: tuple[int, ...]) -> Assignment:
    ends = np.cumsum(plan).tolist()
    return tuple(chosen[end - n : end] for end, n in zip(ends, plan, strict=True))
