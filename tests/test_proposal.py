"""The proposal: probabilities that add up, draws that follow them, in whatever order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.prior import element_rank
from langevin_xtal.model.proposal import (
    BINS,
    COMPONENTS,
    Descriptions,
    Draw,
    Mixture,
    Proposal,
    ProposalConfig,
    Sites,
    draw,
    in_cell_like,
    lattice_features,
    padded,
    soft_bins,
    waves,
)
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.symmetry import (
    SpaceGroup,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
    orbit,
)
from langevin_xtal.symmetry.description import EDGE, describe, smallest_labels
from langevin_xtal.symmetry.frames import frames
from langevin_xtal.symmetry.lattice import fixed_coordinates
from langevin_xtal.symmetry.wyckoff import shift_vectors, table_start, wyckoff_positions
from langevin_xtal.train.parts import PartEpochs, fit_parts
from langevin_xtal.train.prior import site_positions
from langevin_xtal.train.proposals import (
    describe_dataset,
    describe_variants,
    fit_proposal,
    likeliest_variants,
)
from tests.crystals import random_lattice

CASES: list[tuple[int, list[int], list[int]]] = [
    (62, [29, 14, 19], [2, 2, 3]),
    (225, [11, 17, 8], [0, 1, 4]),
    (14, [40, 8, 8], [4, 4, 4]),
    (2, [3, 9], [0, 8]),
    (1, [3, 9, 9], [0, 0, 0]),
    (194, [30, 16, 16], [2, 5, 9]),
    (146, [22, 8], [0, 1]),
    (186, [30, 16], [0, 1]),
    (43, [26, 8], [0, 1]),
    (216, [30, 16, 16], [0, 1, 4]),
    (5, [1, 8, 1], [0, 2, 1]),
]
"""Groups with the atomic numbers and Wyckoff positions of their sites."""


@pytest.fixture(scope="module")
def proposal(proposing_model: CrystalModel) -> Proposal:
    """With random weights, large enough that its distributions are far from uniform."""
    torch.manual_seed(4)
    found = Proposal(ProposalConfig(width=32, layers=1, heads=2)).eval().requires_grad_(False)
    for head in found.heads:
        head[-1].weight.mul_(6.0)
    return found


@pytest.fixture(scope="module")
def statistics(tiny_model: CrystalModel) -> Statistics:
    return tiny_model.statistics


def numbers_for(seed: int, sites: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(sites + 1, 3, generator=generator, dtype=torch.float64)
    return uniforms, torch.randn(6, generator=generator, dtype=torch.float64)


def drawn(
    proposal: Proposal,
    statistics: Statistics,
    case: tuple[int, Sequence[int], Sequence[int]],
    seed: int = 0,
    temperature: float = 1.0,
) -> Draw:
    uniforms, normals = numbers_for(seed, len(case[1]))
    return drawn_with(proposal, statistics, case, uniforms, normals, temperature)


def drawn_with(
    proposal: Proposal,
    statistics: Statistics,
    case: tuple[int, Sequence[int], Sequence[int]],
    uniforms: Tensor,
    normals: Tensor,
    temperature: float = 1.0,
) -> Draw:
    group, numbers, positions = case
    asked = [Sites(group, tuple(numbers), tuple(positions))]
    (found,) = draw(
        proposal, statistics, asked, uniforms[None], normals[None], torch.tensor([temperature])
    )
    return found


def described_draw(
    statistics: Statistics, group: int, numbers: Sequence[int], found: Draw
) -> Descriptions:
    """A draw as a description: sites in canonical order, with their parameters and lattice."""
    order = np.lexsort((found.positions, element_rank()[list(numbers)]))
    table = wyckoff_positions(group)
    where = [found.positions[s] for s in order]
    d = padded([group], [np.array(numbers)[order]], [where], statistics)
    for place, (s, w) in enumerate(zip(order, where, strict=True)):
        values = found.frac[s][table[w].parameters]
        d.values[0, place, : len(values)] = torch.from_numpy(values)
    coordinates = torch.from_numpy(found.coordinates)[None]
    d.lattice[:] = lattice_features(coordinates, d.size.double())
    return d


# the distributions


@given(st.integers(0, 10**6))
def test_mixture_against_scipy(seed):
    rng = np.random.default_rng(seed)
    b, k = 3, int(rng.integers(1, 6))
    weight = rng.dirichlet(np.ones(k), b)
    mean, spread = rng.normal(size=(b, k, 6)), rng.uniform(0.05, 2.0, (b, k, 6))
    x, free = rng.normal(size=(b, 6)), rng.uniform(size=(b, 6)) < 0.6
    mixture = Mixture(*(torch.from_numpy(v) for v in (np.log(weight), mean, spread)))
    found = mixture.log_density(torch.from_numpy(x), torch.from_numpy(free))
    for i in range(b):
        each = scipy.stats.norm.logpdf(x[i], mean[i], spread[i])[:, free[i]].sum(1)
        expected = scipy.special.logsumexp(each, b=weight[i])
        assert float(found[i]) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=6), st.floats(0.3, 3.0))
def test_bins_of_fractions(values, smoothing):
    x = torch.tensor(values)
    hard, soft = soft_bins(x, 0.0), soft_bins(x, smoothing)
    assert hard.shape == soft.shape == (len(values), BINS)
    torch.testing.assert_close(soft.sum(1), torch.ones(len(values)))
    assert torch.equal(hard.sum(1), torch.ones(len(values)))
    # on the circle: the nearest bin is at most half a bin away
    gap = hard.argmax(1) / BINS - x
    assert float((gap - gap.round()).abs().max()) <= 0.5 / BINS + 1e-6
    torch.testing.assert_close(soft_bins(x + 1, smoothing), soft, atol=1e-4, rtol=0)


def test_waves_have_the_period_of_the_cell():
    x = torch.rand(20)
    torch.testing.assert_close(waves(x), waves(x + 1), atol=1e-4, rtol=0)
    assert len(torch.unique(waves(x).round(decimals=3), dim=0)) == 20


@pytest.mark.parametrize(
    ("group", "numbers", "positions"),
    [(62, [29], [2]), (99, [22, 8], [0, 1]), (186, [30, 16], [0, 0])],
    ids=["x and z of one site", "z of two sites", "z of two sites on one axis"],
)
def test_probabilities_of_all_bins_add_up(proposal, statistics, group, numbers, positions):
    """The sum over every choice of two parameters is 1."""
    order = np.argsort(element_rank()[numbers], kind="stable")
    n = BINS**2
    where = [positions[k] for k in order]
    d = padded([group] * n, [np.array(numbers)[order]] * n, [where] * n, statistics)
    crystal, site, k = torch.nonzero(d.used, as_tuple=True)
    assert len(crystal) == 2 * n
    grid = torch.cartesian_prod(*[torch.arange(BINS) / BINS] * 2)
    d.values[crystal, site, k] = grid.flatten()
    with torch.inference_mode():
        places, _ = proposal.log_likelihood(d)
    assert float(places.double().exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(places.exp().max()) > 3 / n  # not uniform


@pytest.mark.parametrize("group", [1, 14, 62, 225])
def test_the_lattice_is_a_density(proposal, statistics, group):
    """Over one free coordinate, the others integrated out by leaving them away."""
    d = padded([group], [np.array([29])], [[len(wyckoff_positions(group)) - 1]], statistics)
    with torch.inference_mode():
        context = proposal.context(d)
        mixture = proposal.mixture(proposal.placed(context, d), context, d)
    assert mixture.log_weight.shape == (1, COMPONENTS)
    assert float(mixture.log_weight.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    x = np.linspace(-40, 40, 40_001)
    for k in np.flatnonzero(lattice_freedom(group)):
        free = torch.zeros(len(x), 6, dtype=torch.bool)
        free[:, k] = True
        points = torch.zeros(len(x), 6, dtype=torch.float64)
        points[:, k] = torch.from_numpy(x)
        wide = Mixture(mixture.log_weight, mixture.mean.double(), mixture.spread.double())
        density = wide.log_density(points, free).exp().numpy()
        assert np.trapezoid(density, x) == pytest.approx(1.0, abs=1e-3)


def test_padding_changes_no_parameters(proposal, statistics):
    whole, alone, picked = with_and_without_padding(proposal, statistics)
    torch.testing.assert_close(whole[0], alone[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(picked[0], whole[0][[2, 0]], atol=1e-4, rtol=0)


def test_padding_changes_no_lattice(proposal, statistics):
    whole, alone, picked = with_and_without_padding(proposal, statistics)
    torch.testing.assert_close(whole[1], alone[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(picked[1], whole[1][[2, 0]], atol=1e-4, rtol=0)


def with_and_without_padding(proposal: Proposal, statistics: Statistics) -> list[list[Tensor]]:
    """Log-likelihoods of three crystals in one batch, one by one, and of two picked."""
    cases = [c for c in CASES if c[0] in (62, 225, 2)]
    each = [
        described_draw(statistics, g, z, drawn(proposal, statistics, (g, z, w)))
        for g, z, w in cases
    ]
    positions = [(d.rows[0] - table_start()[int(d.group) - 1]).tolist() for d in each]
    numbers = [d.numbers[0].numpy() for d in each]
    together = padded([int(d.group) for d in each], numbers, positions, statistics)
    for b, d in enumerate(each):
        own = d.numbers.shape[1]
        assert torch.equal(together.used[b, :own], d.used[0])
        assert not together.used[b, own:].any()
        together.values[b, :own], together.lattice[b] = d.values[0], d.lattice[0]
        torch.testing.assert_close(together.size[b], d.size[0])
    with torch.inference_mode():
        whole = proposal.log_likelihood(together)
        alone = [proposal.log_likelihood(d) for d in each]
        picked = proposal.log_likelihood(together.pick(torch.tensor([2, 0])))
    assert together.pick(torch.tensor([2])).numbers.shape == (1, 2)
    return [list(whole), [torch.cat([a[k] for a in alone]) for k in range(2)], list(picked)]


def test_sites_do_not_look_ahead(proposal, statistics):
    """A parameter's distribution depends on those before it, in the order of the description."""
    group, numbers, _ = CASES[0]
    d = described_draw(statistics, group, numbers, drawn(proposal, statistics, CASES[0]))
    bins = []
    for late in (0.1, 0.7):
        d.values[0, 2] = late
        with torch.inference_mode():
            state = proposal.placed(proposal.context(d), d)
        bins.append(proposal.bins(state, d.values[:, [0, 1, 2, 2]], 0))
    assert torch.equal(bins[0][:, :3], bins[1][:, :3])
    assert not torch.allclose(bins[0][:, 3], bins[1][:, 3])


# draws


@pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_likelihood_of_draws(proposal, statistics, case, temperature):
    """What a draw says of itself is what the distribution says of it."""
    for seed in range(3):
        found = drawn(proposal, statistics, case, seed, temperature)
        d = described_draw(statistics, case[0], case[1], found)
        with torch.inference_mode():
            places, lattice = proposal.log_likelihood(d)
        expected = float(places) + float(lattice)
        assert found.log_likelihood == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
def test_draws_are_what_was_asked_for(proposal, statistics, case):
    """Sites on their positions, at the centres of bins; cells of the group."""
    group, numbers, positions = case
    table = wyckoff_positions(group)
    for seed in range(3):
        found = drawn(proposal, statistics, case, seed)
        kinds = element_rank()[numbers]
        labels = smallest_labels(group, positions, kinds.tolist())[0]
        assert found.positions == labels
        for x, w in zip(found.frac, found.positions, strict=True):
            off = (np.eye(3) - table[w].projector) @ (x - table[w].base)
            np.testing.assert_allclose(off, 0, atol=1e-6)
            values = x[table[w].parameters]
            assert ((values >= -EDGE - 1e-6) & (values < 1 - EDGE)).all()
            np.testing.assert_allclose(values * BINS, np.rint(values * BINS), atol=1e-4)
        own, driver = found.coordinates, lattice_driver(group)
        assert np.array_equal(own, own[driver])
        free = lattice_freedom(group)[driver]
        assert np.array_equal(own[~free], fixed_coordinates(group)[~free])
        assert np.linalg.det(cell_frame(torch.from_numpy(own)[None]).rows[0].numpy()) > 0


@pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
def test_the_order_of_sites_does_not_matter(proposal, statistics, case):
    """Nor does the origin from which their positions are named."""
    group, numbers, positions = case
    found = drawn(proposal, statistics, case, 5)
    rng = np.random.default_rng(group)
    names = shift_vectors(group)[1]
    for _ in range(4):
        order = rng.permutation(len(numbers))
        name = names[rng.integers(len(names))]
        other = (group, [numbers[k] for k in order], [int(name[positions[k]]) for k in order])
        again = drawn(proposal, statistics, other, 5)
        assert again.log_likelihood == found.log_likelihood
        assert np.array_equal(again.coordinates, found.coordinates)
        # sites of one element may change places: the atoms are the same
        a = _sorted_sites(numbers, found)
        assert a == _sorted_sites(other[1], again)


def _sorted_sites(numbers: Sequence[int], found: Draw) -> list[tuple[object, ...]]:
    rows = zip(numbers, found.positions, found.frac.tolist(), strict=True)
    return sorted((z, w, *x) for z, w, x in rows)


@pytest.fixture(scope="module")
def turning(proposal: Proposal) -> Proposal:
    """The same weights, for descriptions that choose the basis too."""
    config = dataclasses.replace(proposal.config, frames=True)
    found = Proposal(config).eval().requires_grad_(False)
    found.load_state_dict(proposal.state_dict())
    return found


@pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
def test_nor_does_the_basis(turning, statistics, case):
    """Positions named in any frame are the same question to a proposal that chooses frames."""
    group, numbers, positions = case
    found = drawn(turning, statistics, case, 5)
    kinds = element_rank()[numbers].tolist()
    assert found.positions == smallest_labels(group, positions, kinds, turned=True)[0]
    rng = np.random.default_rng(group)
    names = frames(group).names
    for _ in range(4):
        name = names[rng.integers(len(names))]
        again = drawn(turning, statistics, (group, numbers, name[positions].tolist()), 5)
        assert again.log_likelihood == found.log_likelihood
        assert np.array_equal(again.coordinates, found.coordinates)
        assert _sorted_sites(numbers, again) == _sorted_sites(numbers, found)


@pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
def test_draws_in_a_given_cell(turning, statistics, case):
    """The crystal that was drawn, in the basis of the cell that was asked for."""
    group = case[0]
    found = drawn(turning, statistics, case, 6)
    table, rng = frames(group), np.random.default_rng(group)
    rows = cell_frame(torch.from_numpy(found.coordinates)[None]).rows[0].numpy()
    for _ in range(3):
        wanted = table.basis[rng.integers(len(table.basis))].T @ rows * 1.1
        placed = in_cell_like(found, group, lattice_coordinates(wanted))
        cell = cell_frame(torch.from_numpy(placed.coordinates)[None]).rows[0].numpy()
        np.testing.assert_allclose(cell @ cell.T * 1.21, wanted @ wanted.T, atol=1e-4)
        distances = []
        for frac, lattice in ((found.frac, rows), (placed.frac, cell)):
            distances.append(_distances(group, frac, lattice))
        np.testing.assert_allclose(distances[0], distances[1], atol=1e-5)
        for x, w in zip(placed.frac, placed.positions, strict=True):
            where = wyckoff_positions(group)[w]
            off = (np.eye(3) - where.projector) @ (x - where.base)
            np.testing.assert_allclose(off, 0, atol=1e-6)


def _distances(group: int, frac: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """All shortest distances from sites to atoms of the crystal, in order of length."""
    space_group = SpaceGroup(group)
    box = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    found = []
    for x in frac:
        for y in frac:
            images = orbit(y, space_group.rotations, space_group.translations, 40 * np.eye(3))[0]
            gap = (images - x) - np.rint(images - x)
            every = (gap[:, None] + box[None]) @ lattice
            found.append(np.sort(np.linalg.norm(every, axis=2).ravel())[:8])
    return np.sort(np.concatenate(found))


def together(
    proposal: Proposal, statistics: Statistics, places: Sequence[int]
) -> list[tuple[int, ...]]:
    """Draws of cases in one call, as numbers to the last bit."""
    asked = [Sites(g, tuple(z), tuple(w)) for g, z, w in (CASES[p % len(CASES)] for p in places)]
    sites = 1 + max(len(one.numbers) for one in asked)
    uniforms = torch.full((len(asked), sites, 3), torch.nan, dtype=torch.float64)
    normals = torch.empty(len(asked), 6, dtype=torch.float64)
    for row, (p, one) in enumerate(zip(places, asked, strict=True)):
        uniforms[row, : len(one.numbers) + 1], normals[row] = numbers_for(p, len(one.numbers))
    found = draw(proposal, statistics, asked, uniforms, normals, torch.ones(len(asked)))
    return [(f.positions, f.log_likelihood, *f.frac.flat, *f.coordinates) for f in found]


@pytest.fixture(scope="module")
def several(proposal: Proposal) -> Proposal:
    """Three members."""
    members = [proposal]
    for seed in (5, 6):
        torch.manual_seed(seed)
        member = Proposal(proposal.config).eval().requires_grad_(False)
        for head in member.heads:
            head[-1].weight.mul_(6.0)
        members.append(member)
    return Proposal.of_members(members)


@pytest.mark.parametrize("members", [1, 3])
def test_draws_do_not_depend_on_their_company(proposal, several, statistics, members):
    """In float64, to the last bit; numbers after those a crystal uses are not looked at."""
    used = deepcopy(proposal if members == 1 else several).double()
    rng = np.random.default_rng(members)
    places = list(range(3 * len(CASES)))
    whole = together(used, statistics, places)
    assert len(set(whole)) == len(whole)
    for size in (1, 7):
        for pick in (rng.choice(places, size, replace=False).tolist() for _ in range(5)):
            assert together(used, statistics, pick) == [whole[p] for p in pick]


class TestMembers:
    """Several networks in place of one."""

    def test_the_same_one_twice_is_that_one(self, proposal, statistics):
        twice = Proposal.of_members([proposal, proposal]).double()
        once = deepcopy(proposal).double()
        places = range(len(CASES))
        for a, b in zip(
            together(once, statistics, places), together(twice, statistics, places), strict=True
        ):
            assert a[0] == b[0]
            free = slice(2, -6)  # which of two equal components the cell comes from may differ
            assert a[free] == b[free]

    @pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
    def test_factors_are_means(self, several, statistics, case):
        """The likelihood of a draw, factor by factor from what each member says of it."""
        found = drawn(several, statistics, case, 1)
        d = described_draw(statistics, case[0], case[1], found)
        factors, lattices = [], []
        with torch.inference_mode():
            for member in several.members():
                context = member.context(d)
                state = member.placed(context, d)
                own = []
                for s, k in torch.nonzero(d.used[0]).tolist():
                    log_p = member.bins(state[:, s], d.values[:, s], k).log_softmax(1)
                    own.append(float((log_p * soft_bins(d.values[:, s, k], 0.0)).sum()))
                factors.append(own)
                free = torch.from_numpy(lattice_freedom(case[0]))[None]
                mixture = member.mixture(state, context, d)
                lattices.append(float(mixture.log_density(d.lattice, free)))
        count = np.log(len(factors))
        total = float((scipy.special.logsumexp(factors, axis=0) - count).sum())
        total += float(scipy.special.logsumexp(lattices) - count)
        assert found.log_likelihood == pytest.approx(total, abs=5e-3)

    def test_they_come_apart_again(self, proposal, several):
        singles = several.singles()
        assert [s.config for s in singles] == [proposal.config] * 3
        again = Proposal.of_members(singles).state_dict()
        for name, value in several.state_dict().items():
            assert torch.equal(again[name], value)
        assert all(
            torch.equal(singles[0].state_dict()[k], v) for k, v in proposal.state_dict().items()
        )

    def test_members_are_alike_in_size(self, proposal, several):
        assert several.config.members == 3
        assert len(several.members()) == 3
        other = Proposal(ProposalConfig(width=64, layers=1, heads=2))
        for bad in ([proposal, other], [proposal, several]):
            with pytest.raises(InputError, match="one configuration"):
                Proposal.of_members(bad)


@pytest.mark.parametrize("case", CASES, ids=[str(c[0]) for c in CASES])
def test_cold_draws_are_the_likeliest_bins(proposal, statistics, case):
    """Parameter by parameter, trying every bin; and the lattice at the top of its mixture."""
    group, numbers, _ = case
    cold = [drawn(proposal, statistics, case, seed, 1e-4) for seed in range(3)]
    for other in cold[1:]:
        np.testing.assert_allclose(other.frac, cold[0].frac, atol=1e-12)
        np.testing.assert_allclose(other.coordinates, cold[0].coordinates, atol=1e-2)
    d = described_draw(statistics, group, numbers, cold[0])
    everywhere = torch.nonzero(d.used[0])
    for n, (s, k) in enumerate(everywhere.tolist()):
        tried = d.pick(torch.zeros(BINS, dtype=torch.int64))
        tried.used[:] = False
        for t, j in everywhere[: n + 1].tolist():
            tried.used[:, t, j] = True  # later ones do not count yet
        tried.values[:, s, k] = torch.arange(BINS) / BINS
        with torch.inference_mode():
            places, _ = proposal.log_likelihood(tried)
        wanted = int(places.argmax()) / BINS
        gap = float(d.values[0, s, k]) - wanted
        assert abs(gap - round(gap)) < 1e-5
    with torch.inference_mode():
        context = proposal.context(d)
        mixture = proposal.mixture(proposal.placed(context, d), context, d)
    top = mixture.mean[0, int(mixture.log_weight[0].argmax())]
    free = torch.from_numpy(lattice_freedom(group))
    torch.testing.assert_close(d.lattice[0][free], top[free], atol=1e-3, rtol=0)


def test_draws_follow_the_probabilities(proposal, statistics):
    """Evenly spaced numbers in (0, 1) meet every bin as often as its probability says."""
    group, numbers, w = 99, [22], 0
    d = padded([group] * BINS, [np.array(numbers)] * BINS, [[w]] * BINS, statistics)
    d.values[:, 0, 0] = torch.arange(BINS) / BINS
    with torch.inference_mode():
        p = proposal.log_likelihood(d)[0].double().exp().numpy()
    count, n = np.zeros(BINS), 600
    for k in range(n):
        uniforms = torch.full((2, 3), (k + 0.5) / n, dtype=torch.float64)
        case = (group, numbers, [w])
        found = drawn_with(proposal, statistics, case, uniforms, torch.zeros(6))
        count[round(found.frac[0, 2] * BINS) % BINS] += 1
    assert np.abs(count - n * p).max() <= 1.01
    assert (count > 0).sum() > 20


def test_the_lattice_follows_its_normals(proposal, statistics):
    group, numbers, _ = CASES[2]
    uniforms, _ = numbers_for(0, len(numbers))
    free = lattice_freedom(group)
    features = []
    for value in (-1.0, 0.0, 2.0):
        normals = torch.full((6,), value, dtype=torch.float64)
        found = drawn_with(proposal, statistics, CASES[2], uniforms, normals, 0.5)
        features.append(described_draw(statistics, group, numbers, found).lattice[0].numpy()[free])
    low, mean, high = features
    np.testing.assert_allclose(high - mean, 2 * (mean - low), atol=2e-3)
    assert (mean - low > 0).all()


def test_lattice_features_are_sizes_and_shapes():
    rng = np.random.default_rng(0)
    lattice = np.stack([random_lattice(n, rng, 200.0) for n in (1, 14, 62, 194, 225)])
    log_volume = torch.full((5,), np.log(150.0))
    found = lattice_features(torch.from_numpy(lattice_coordinates(lattice)), log_volume).numpy()
    lengths = np.linalg.norm(lattice, axis=2) / np.cbrt(150.0)
    np.testing.assert_allclose(np.exp(found[:, :3]), lengths, rtol=1e-6)
    cosine = np.einsum("bi,bi->b", lattice[:, 0], lattice[:, 2]) / (
        np.linalg.norm(lattice[:, 0], axis=1) * np.linalg.norm(lattice[:, 2], axis=1)
    )
    np.testing.assert_allclose(-np.tanh(found[:, 4]), cosine, atol=1e-9)


# fitting


@pytest.fixture(scope="module")
def small(reference: PackedDataset) -> PackedDataset:
    return reference.select(np.flatnonzero(reference.site_counts <= 4)[::2])


@pytest.fixture(scope="module")
def described(small: PackedDataset, statistics: Statistics) -> Descriptions:
    return describe_dataset(small, statistics, workers=1)


def test_datasets_are_described_crystal_by_crystal(small, described, statistics):
    assert len(described) == len(small)
    rows, start = site_positions(small), table_start()
    kinds = element_rank()[small.numbers]
    for k in range(len(small)):
        own, group = small.sites_of(k), int(small.group[k])
        local = (rows[own] - start[group - 1]).tolist()
        alone = describe(group, local, small.frac[own], kinds[own].tolist(), small.lattice[k])
        n = len(local)
        assert described.numbers[k, :n].tolist() == small.numbers[own][alone.order].tolist()
        assert not described.numbers[k, n:].any()
        assert (described.rows[k, :n] - start[group - 1]).tolist() == list(alone.positions)
        for s, values in enumerate(alone.parameters):
            assert int(described.used[k, s].sum()) == len(values)
            found = described.values[k, s, : len(values)].numpy()
            np.testing.assert_allclose(found, values, atol=1e-6)
        atoms = small.multiplicity[own] @ statistics.atomic_volume[small.numbers[own]]
        assert float(described.size[k]) == pytest.approx(np.log(atoms), abs=1e-5)
        cell = torch.from_numpy(lattice_coordinates(alone.basis.T @ small.lattice[k]))[None]
        features = lattice_features(cell, described.size[k : k + 1].double())
        torch.testing.assert_close(described.lattice[k], features[0].float())
        # the sites of the description, expanded, are as many atoms as the crystal's
        group_ = SpaceGroup(group)
        images = [
            len(orbit(x, group_.rotations, group_.translations, 50.0 * np.eye(3))[0])
            for x in alone.frac
        ]
        assert images == small.multiplicity[own][alone.order].tolist()


def test_variants_are_described_crystal_by_crystal(small, described, statistics):
    found, owner = describe_variants(small, statistics, most=3, workers=1)
    first = np.unique(owner, return_index=True)[1]
    assert owner.tolist() == sorted(owner.tolist())
    assert len(first) == len(small)
    assert 1 < np.bincount(owner).max() <= 3
    again = found.pick(torch.from_numpy(first))
    n = again.numbers.shape[1]
    for name in ("numbers", "rows", "values"):
        assert torch.equal(getattr(again, name), getattr(described, name)[:, :n])
    assert torch.equal(again.lattice, described.lattice)
    np.testing.assert_array_equal(found.group.numpy(), small.group[owner])


def test_the_likeliest_variants_are_learned(small, proposal, statistics):
    found, owner = describe_variants(small, statistics, most=3, workers=1)
    chosen = likeliest_variants(proposal, found, owner)
    assert owner[chosen.numpy()].tolist() == list(range(len(small)))
    with torch.inference_mode():
        places, lattice = proposal.log_likelihood(found)
    score = (places + 0.5 * lattice).numpy()
    for k, row in enumerate(chosen.tolist()):
        assert score[row] >= score[owner == k].max() - 1e-4
    config = ProposalConfig(width=16, layers=1, heads=2, frames=True)
    fitted = fit_proposal(found, owner, epochs=8, config=config)
    fresh = fit_proposal(found, owner, epochs=1, config=config)
    with torch.inference_mode():
        gain = sum(fitted.log_likelihood(found)) - sum(fresh.log_likelihood(found))
    assert float(gain[chosen].mean()) > 1.0
    # what another one finds likeliest is learned from the first epoch on
    chosen = likeliest_variants(fitted, found, owner)
    again = fit_proposal(found, owner, epochs=2, seed=3, config=config, like=fitted)
    alone = fit_proposal(found.pick(chosen), epochs=2, seed=3, config=config)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], atol=1e-6, rtol=1e-4)


def test_given_weights_are_fitted_anew(described):
    config = ProposalConfig(width=32, layers=1, heads=2)
    given = fit_proposal(described, epochs=20, config=config)
    state = {name: value.clone() for name, value in given.state_dict().items()}
    first: dict[bool, float] = {}
    for init in (None, given):
        fitted = fit_proposal(
            described,
            epochs=2,
            config=config,
            init=init,
            on_epoch=lambda epoch, *loss, init=init: first.setdefault(init is None, sum(loss)),
        )
    assert first[False] < first[True] - 1.0
    assert fitted.config == dataclasses.replace(config, frames=True)
    assert all(torch.equal(state[name], value) for name, value in given.state_dict().items())


def test_more_members_than_were_given(small, statistics):
    given = Proposal(ProposalConfig(width=16, layers=1, heads=2))
    epochs = PartEpochs(prior=0, ranker=0, proposal=1, members=2)
    described_draw = list(fit_parts(small, statistics, epochs, {}, init={"proposal": given}))
    assert [name for name, _ in described_draw] == ["proposal", "proposal"]
    assert described_draw[-1][1].config == dataclasses.replace(
        given.config, members=2, frames=True
    )


def test_fitting_learns_and_is_repeatable(described):
    config = ProposalConfig(width=32, layers=1, heads=2)
    seen: list[tuple[int, float, float]] = []
    fitted = fit_proposal(
        described, epochs=25, config=config, on_epoch=lambda *row: seen.append(row)
    )
    assert [row[0] for row in seen] == list(range(1, 26))
    torch.manual_seed(0)
    fresh = Proposal(config)
    with torch.inference_mode():
        before = [v.mean() for v in fresh.log_likelihood(described)]
        after = [v.mean() for v in fitted.log_likelihood(described)]
    assert float(after[0] - before[0]) > 1.0
    assert float(after[1] - before[1]) > 1.0
    assert not fitted.training
    assert not any(p.requires_grad for p in fitted.parameters())
    short = [fit_proposal(described, epochs=2, config=config, seed=s) for s in (0, 0, 1)]
    states = [p.state_dict() for p in short]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 4}, "width is 4"),
        ({"layers": 0}, "layers is 0"),
        ({"heads": 17}, "heads is 17"),
        ({"members": 0}, "members is 0"),
        ({"members": 16, "layers": 16, "width": 512}, "16 members of 16 layers and width 512"),
        ({"width": 30}, "width 30 is not a multiple of 4 heads"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(ProposalConfig(), **changes)
