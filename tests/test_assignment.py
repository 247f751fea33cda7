"""The prior over Wyckoff positions, and sampling confined to them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.model.assignment import WyckoffPrior, has_freedom
from langevin_xtal.model.checkpoint import load_model, save_model
from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.sample import SampleOptions, sample
from langevin_xtal.sampling.samplers import Ancestral, run
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.symmetry import cell_lengths
from langevin_xtal.symmetry.wyckoff import locate, table_start, wyckoff_positions
from langevin_xtal.train.assignments import (
    assignment_table,
    fit_prior,
    mean_log_likelihood,
    site_positions,
)


@pytest.fixture(scope="module")
def prior() -> WyckoffPrior:
    return fit_prior(reference_dataset(), epochs=3)


def rows(number: int) -> range:
    return range(table_start()[number - 1], table_start()[number])


@pytest.mark.parametrize("number", [62, 194, 221])
def test_probabilities_of_all_assignments_add_up(prior, number):
    """Over every allowed assignment of O, Ti, Ti (canonical order), the sum is 1."""
    free = has_freedom()
    allowed = [
        (a, b, c)
        for a, b, c in itertools.product(rows(number), repeat=3)
        if c >= b and all(free[x] or (a, b, c).count(x) == 1 for x in (a, b, c))
    ]
    n = len(allowed)
    with torch.inference_mode():
        log = prior.log_likelihood(
            torch.full((n,), number), torch.tensor([[8, 22, 22]] * n), torch.tensor(allowed)
        )
    assert log.exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_draws_follow_the_probabilities(prior):
    request = Request(221, {"Ti": 1, "O": 1})
    n = 4000
    uniforms = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = prior.draw([request] * n, uniforms)
    first = rows(221)[0]
    pairs = sorted({tuple(row) for row in drawn})
    with torch.inference_mode():
        # canonical order is by atomic number: oxygen first
        log = prior.log_likelihood(
            torch.full((len(pairs),), 221),
            torch.tensor([[8, 22]] * len(pairs)),
            torch.tensor([[first + o, first + ti] for ti, o in pairs]),
        )
    for pair, p in zip(pairs, log.exp().tolist(), strict=True):
        share = sum(tuple(row) == pair for row in drawn) / n
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5 + 1e-3)


def test_positions_without_freedom_hold_one_site(prior):
    requests = [Request(225, {"Na": 3, "Cl": 3}), Request(62, {"Cu": 4, "O": 2})] * 50
    uniforms = torch.rand(100, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for request, row in zip(requests, prior.draw(requests, uniforms), strict=True):
        fixed = [w for w in row if wyckoff_positions(request.space_group.number)[w].freedom == 0]
        assert len(fixed) == len(set(fixed))


def test_draws_do_not_depend_on_the_batch(prior):
    requests = [
        Request(n, {"Cu": 1 + n % 2, "S": 1 + n % 3}) for n in (225, 62, 194, 139, 16, 230, 99)
    ]
    generator = torch.Generator().manual_seed(2)
    uniforms = torch.rand(len(requests), 5, generator=generator, dtype=torch.float64)
    together = prior.draw(requests, uniforms)
    for k, request in enumerate(requests):
        assert prior.draw([request], uniforms[k : k + 1]) == [together[k]]


def test_fitting_learns():
    data = reference_dataset()
    group, numbers, chosen = assignment_table(data)
    assert (chosen[numbers > 0] >= 0).all()
    torch.manual_seed(0)
    before = mean_log_likelihood(WyckoffPrior(), data)
    after = mean_log_likelihood(fit_prior(data, epochs=30), data)
    assert after > before + 1.0
    assert after < 0
    assert len(group) == len(data)


def test_letters_name_positions():
    data = reference_dataset()
    found = site_positions(data)
    crystal = np.repeat(np.arange(len(data)), np.diff(data.site_start))
    for site, row in enumerate(found):
        number = int(data.group[crystal[site]])
        position = locate(number, data.frac[site], data.lattice[crystal[site]])
        assert row == table_start()[number - 1] + position.index
        assert position.multiplicity == data.multiplicity[site]


def test_sites_stay_on_their_positions(tiny_model, prior):
    model = dataclasses.replace(tiny_model, prior=prior)
    requests = [Request(n, {"Cu": 2, "Si": 1}) for n in (16, 62, 99, 139, 166, 194, 216, 225)]
    keys = stream_keys(
        3, torch.arange(len(requests)), torch.zeros(len(requests), dtype=torch.long)
    )
    sampler = Ancestral(levels=6)
    chains = Chains.start(model, requests, keys, 6.0, assigned=True)
    start = chains.crystals.site_start.tolist()

    def positions() -> list[int]:
        return [
            locate(request.space_group.number, chains.frac[s].numpy(), lattice).index
            for request, lattice, first, last in zip(
                requests, chains.lattice.numpy(), start, start[1:], strict=False
            )
            for s in range(first, last)
        ]

    before = positions()
    for _ in run(sampler, chains):
        assert positions() == before
    assert len(set(before)) > 2


def test_prior_travels_with_the_model(tiny_model, prior, tmp_path):
    model = dataclasses.replace(tiny_model, prior=prior)
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert again.hash == model.hash != tiny_model.hash
    requests = [Request(225, {"Na": 1, "Cl": 1}), Request(62, {"Cu": 2, "Si": 1, "K": 1})] * 3
    options = SampleOptions(sampler=Ancestral(levels=4), attempts=1)
    for a, b in zip(
        sample(requests, model, 5, options=options),
        sample(requests, again, 5, options=options),
        strict=True,
    ):
        np.testing.assert_array_equal(a.frac, b.frac)
        np.testing.assert_array_equal(cell_lengths(a.lattice), cell_lengths(b.lattice))
