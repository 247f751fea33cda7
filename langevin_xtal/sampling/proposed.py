"""Starting points that the model proposes: known structure types, and learned proposals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from langevin_xtal.crystal.request import Request
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.prior import element_rank
from langevin_xtal.model.proposal import Draw, Sites, draw
from langevin_xtal.sampling.known_types import OpenCrystal, drawn_type, type_in_turn
from langevin_xtal.sampling.positions import SiteList
from langevin_xtal.sampling.streams import normals, uniforms
from langevin_xtal.symmetry.description import smallest_labels
from langevin_xtal.symmetry.normaliser import position_permutations

MOST_DRAWN = 1024
"""Proposals drawn at once."""


def likeliest_proposals(
    requests: Sequence[Request],
    assigned: Sequence[SiteList | None],
    model: CrystalModel,
    keys: Tensor,
    count: int,
    temperature: Tensor,
    turns: Sequence[int],
    remembered: Sequence[Draw | None],
) -> list[Draw | None]:
    """For every chain that starts from one the likeliest of a few proposals, others each turn.

    Where a known type is ``remembered``, it is taken.

    Parameters
    ----------
    keys
        (B,) streams.
    count
        Proposals drawn for a chain at a turn.
    temperature, turns
        (B,) of each chain.
    """
    best = list(remembered)
    owners = [
        k
        for k, (request, sites) in enumerate(zip(requests, assigned, strict=True))
        if best[k] is None and _is_proposed(request, sites)
    ]
    proposal = model.precise_proposal
    if proposal is None or not count or not owners:
        return best
    turned = proposal.config.frames
    asked: list[Sites] = []
    owner: list[int] = []
    trial: list[int] = []
    for k in owners:
        sites = assigned[k]
        assert sites is not None
        group, numbers = requests[k].space_group.number, tuple(z for z, _ in sites)
        for labels in _labellings(group, numbers, tuple(w.index for _, w in sites), turned):
            asked += [Sites(group, numbers, labels)] * count
            owner += [k] * count
            trial += range(count * turns[k], count * (turns[k] + 1))
    for start in range(0, len(asked), MOST_DRAWN):
        part = slice(start, start + MOST_DRAWN)
        stream, draws = keys[owner[part]], torch.tensor(trial[part])
        numbers_each = 3 * (1 + max(len(sites.numbers) for sites in asked[part]))
        found = draw(
            proposal,
            model.statistics,
            asked[part],
            _slots(uniforms, stream, numbers_each, 3 + 2 * draws).view(len(stream), -1, 3),
            _slots(normals, stream, 6, 4 + 2 * draws),
            temperature[owner[part]],
        )
        for k, one in zip(owner[part], found, strict=True):
            known = best[k]
            if known is None or one.log_likelihood > known.log_likelihood:
                best[k] = one
    return best


def _is_proposed(request: Request, sites: SiteList | None) -> bool:
    """Whether a chain starts from a proposal: these choose their own origin, and fixed sites have
    one already."""
    return sites is not None and request.start is None and not request.fixed


def remembered_types(
    requests: Sequence[Request],
    assigned: Sequence[SiteList | None],
    model: CrystalModel,
    keys: Tensor,
    count: int,
    temperature: Tensor,
    attempts: Sequence[int] | None,
    chain: Sequence[int],
) -> list[Draw | None]:
    """For every chain the crystal of a known structure type, or None for the proposal's turn.

    Of a setting that the model has chosen the first ``chain`` (B,) of a candidate is that of the
    type in turn; the others are the proposal's.
    """
    found: list[Draw | None] = [None] * len(requests)
    if model.types is None or not count:
        return found
    nought = torch.zeros(len(requests), dtype=torch.int64)
    quantiles = torch.stack([uniforms(keys, nought + k, 0) for k in range(2)], 1).tolist()
    for k, (request, sites) in enumerate(zip(requests, assigned, strict=True)):
        if sites is None or not _is_proposed(request, sites):
            continue
        crystal = OpenCrystal.of_sites(request.space_group.number, sites)
        if request.choice is None:
            found[k] = drawn_type(model, crystal, float(temperature[k]), quantiles[k])
        elif not chain[k]:
            turn = request.choice.draw + (attempts[k] if attempts else 0)
            found[k] = type_in_turn(model, crystal, turn)
    return found


def _slots(numbers: Callable[..., Tensor], keys: Tensor, count: int, draws: Tensor) -> Tensor:
    """(B, count) numbers of streams ``keys`` (B,) for their draws (B,)."""
    slots = torch.arange(count).repeat(len(keys))
    flat = numbers(keys.repeat_interleave(count), slots, draws.repeat_interleave(count))
    return flat.view(len(keys), count)


@lru_cache(maxsize=4096)
def _labellings(
    number: int, numbers: tuple[int, ...], where: tuple[int, ...], turned: bool
) -> list[tuple[int, ...]]:
    """The ways to label the same crystals, by turned cells: the proposal knows one of them best.

    Shifts of the origin are the description's to choose, and turns as well when it is ``turned``:
    then there is one labelling.
    """
    kinds = element_rank()[list(numbers)].tolist()
    found: dict[tuple[tuple[int, int], ...], tuple[int, ...]] = {}
    for names in position_permutations(number).tolist():
        labels, _ = smallest_labels(number, [names[w] for w in where], kinds, turned=turned)
        found.setdefault(tuple(sorted(zip(kinds, labels, strict=True))), labels)
    return list(found.values())
