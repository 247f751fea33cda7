"""How likely the proposal is to draw given crystals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.model.prior import element_rank
from langevin_xtal.model.proposal import Descriptions, Proposal, lattice_features, padded
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.symmetry.description import Description, descriptions
from langevin_xtal.symmetry.lattice import lattice_coordinates

VARIANTS, VARIANTS_P1 = 8, 3
"""Descriptions of a crystal, of which the likeliest counts; fewer in P1, where there are many and
sites are many too."""

VARIANT_WINDOW = 0.15
"""By how much a description may be worse than the canonical one."""


def assembled(
    found: Sequence[Description],
    groups: Sequence[int],
    numbers: Sequence[NDArray[np.int64]],
    lattices: NDArray[np.float64],
    statistics: Statistics,
) -> Descriptions:
    """V descriptions as the proposal reads them.

    Parameters
    ----------
    groups, numbers, lattices
        (V,) space-group numbers, (V,) arrays of the sites' atomic numbers in the order given, and
        (V, 3, 3) rows [Å], of the crystal of each description.
    """
    ordered = [own[one.order] for own, one in zip(numbers, found, strict=True)]
    result = padded(groups, ordered, [one.positions for one in found], statistics)
    for v, one in enumerate(found):
        for s, values in enumerate(one.parameters):
            result.values[v, s, : len(values)] = torch.from_numpy(values)
    cells = np.swapaxes(np.array([one.basis for one in found]), 1, 2) @ lattices
    coordinates = torch.from_numpy(lattice_coordinates(cells))
    result.lattice[:] = lattice_features(coordinates, result.size.double())
    return result


def considered(crystal: AsymmetricUnit) -> list[Description]:
    """The descriptions of a crystal of which the likeliest counts."""
    return descriptions(
        crystal.group,
        [position.index for position in crystal.positions],
        crystal.frac,
        element_rank()[crystal.numbers].tolist(),
        crystal.lattice,
        most=VARIANTS_P1 if crystal.group == 1 else VARIANTS,
        window=VARIANT_WINDOW,
    )


@torch.inference_mode()
def log_likelihoods(
    proposal: Proposal, statistics: Statistics, crystals: Sequence[AsymmetricUnit]
) -> NDArray[np.float64]:
    """(C,) of crystals, their Wyckoff positions given [nats].

    Of the bins of all free coordinates, and the density of the lattice features: comparable
    between crystals with the same Wyckoff positions only. Of a crystal's descriptions the
    likeliest counts, and of the members of a proposal their mean.
    """
    found: list[Description] = []
    owner: list[int] = []
    for k, crystal in enumerate(crystals):
        variants = considered(crystal)
        found += variants
        owner += [k] * len(variants)
    described = assembled(
        found,
        [crystals[k].group for k in owner],
        [crystals[k].numbers for k in owner],
        np.array([crystals[k].lattice for k in owner]),
        statistics,
    ).to(proposal.group.weight.device, proposal.group.weight.dtype)
    members = proposal.members()
    each = torch.stack([torch.add(*member.log_likelihood(described)) for member in members])
    mean = each.logsumexp(0).cpu().double().numpy() - np.log(len(members))
    best = np.full(len(crystals), -np.inf)
    np.maximum.at(best, owner, mean)
    return best
