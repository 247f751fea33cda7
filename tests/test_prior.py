"""The prior over Wyckoff positions, and sampling confined to them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.beam import likely_assignments
from langevin_xtal.model.checkpoint import MODEL_FORMAT, load_model, save_model
from langevin_xtal.model.prior import (
    PriorConfig,
    WyckoffPrior,
    element_features,
    element_properties,
    element_rank,
    has_freedom,
)
from langevin_xtal.model.tensor_file import read_tensors, write_tensors
from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.sample import SampleOptions, sample
from langevin_xtal.sampling.samplers import Ancestral, run
from langevin_xtal.sampling.start import start_chains
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.symmetry import cell_lengths
from langevin_xtal.symmetry.assignments import Assignment, assignments, canonical
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.site_by_site import SiteBySite
from langevin_xtal.symmetry.wyckoff import (
    locate,
    origin_shifts,
    table_start,
    wyckoff_positions,
)
from langevin_xtal.train.prior import (
    assignment_table,
    fit_prior,
    mean_log_likelihood,
    similar_elements,
    site_positions,
)
from langevin_xtal.train.ranking import labelled


@pytest.fixture(scope="module")
def prior() -> WyckoffPrior:
    return fit_prior(reference_dataset(), epochs=3)


def rows(number: int) -> range:
    return range(table_start()[number - 1], table_start()[number])


@pytest.mark.parametrize("number", [62, 194, 221])
def test_probabilities_of_all_assignments_add_up(prior, number):
    """Over every allowed assignment of Ti, Ti, O (canonical order), the sum is 1."""
    free = has_freedom()
    allowed = [
        (a, b, c)
        for a, b, c in itertools.product(rows(number), repeat=3)
        if b >= a and all(free[x] or (a, b, c).count(x) == 1 for x in (a, b, c))
    ]
    n = len(allowed)
    with torch.inference_mode():
        log = prior.log_likelihood(
            torch.full((n,), number), torch.tensor([[22, 22, 8]] * n), torch.tensor(allowed)
        )
    assert log.exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_draws_follow_the_probabilities(prior):
    request = Request(221, {"Ti": 1, "O": 1})
    n = 4000
    uniforms = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = prior.draw([request] * n, uniforms, torch.ones(len(uniforms)))
    first = rows(221)[0]
    pairs = sorted({tuple(row) for row in drawn})
    with torch.inference_mode():
        # canonical order is by Mendeleev number: titanium first
        log = prior.log_likelihood(
            torch.full((len(pairs),), 221),
            torch.tensor([[22, 8]] * len(pairs)),
            torch.tensor([[first + ti, first + o] for ti, o in pairs]),
        )
    for pair, p in zip(pairs, log.exp().tolist(), strict=True):
        share = sum(tuple(row) == pair for row in drawn) / n
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5 + 1e-3)


def test_positions_without_freedom_hold_one_site(prior):
    requests = [Request(225, {"Na": 3, "Cl": 3}), Request(62, {"Cu": 4, "O": 2})] * 50
    uniforms = torch.rand(100, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for request, row in zip(
        requests, prior.draw(requests, uniforms, torch.ones(len(uniforms))), strict=True
    ):
        fixed = [w for w in row if wyckoff_positions(request.space_group.number)[w].freedom == 0]
        assert len(fixed) == len(set(fixed))


def test_draws_do_not_depend_on_the_batch(prior):
    requests = [
        Request(n, {"Cu": 1 + n % 2, "S": 1 + n % 3}) for n in (225, 62, 194, 139, 16, 230, 99)
    ]
    generator = torch.Generator().manual_seed(2)
    uniforms = torch.rand(len(requests), 5, generator=generator, dtype=torch.float64)
    together = prior.draw(requests, uniforms, torch.ones(len(uniforms)))
    for k, request in enumerate(requests):
        assert prior.draw(
            [request], uniforms[k : k + 1], torch.ones(len(uniforms[k : k + 1]))
        ) == [together[k]]


def test_scores_do_not_depend_on_the_batch(prior):
    """Neither on its size nor on the padding, to the last bit."""
    group, numbers, chosen = assignment_table(reference_dataset())
    pick = torch.arange(0, len(group), 9)
    with torch.inference_mode():
        wide = prior.read(group[pick], numbers[pick])
        for k, b in enumerate(pick.tolist()):
            n = int((numbers[b] > 0).sum())
            alone = prior.read(group[b : b + 1], numbers[b : b + 1, :n])
            assert torch.equal(alone.state[0], wide.state[k, :n])
            for s in range(n):
                together = prior.scores(
                    wide, group[pick], numbers[pick, : s + 1], chosen[pick, : s + 1], s
                )
                own = numbers[b : b + 1, : s + 1], chosen[b : b + 1, : s + 1]
                single = prior.scores(alone, group[b : b + 1], *own, s)
                assert torch.equal(single[0], together[k])


def test_one_site_at_a_time_scores_the_same(prior):
    """Drawing goes site by site, fitting takes all sites at once."""
    group, numbers, chosen = assignment_table(reference_dataset())
    with torch.inference_mode():
        whole = prior.logits(group, numbers, chosen)
        reading = prior.read(group, numbers)
        for s in range(numbers.shape[1]):
            upto = numbers[:, : s + 1], chosen[:, : s + 1]
            step = prior.scores(reading, group, *upto, s)[:, 0]
            real = numbers[:, s] > 0
            torch.testing.assert_close(step[real], whole[real, s], atol=1e-4, rtol=1e-4)


def test_scores_do_not_look_ahead(prior):
    group, numbers = torch.tensor([62]), torch.tensor([[19, 29, 29, 14]])
    some, others = torch.tensor([[0, 1, 3, 2]]), torch.tensor([[0, 1, 2, 3]])
    first = rows(62)[0]
    with torch.inference_mode():
        a = prior.logits(group, numbers, first + some)
        b = prior.logits(group, numbers, first + others)
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.equal(a[:, 3], b[:, 3])


def labelled_ways(number: int, assignment: Assignment) -> set[Assignment]:
    return {
        tuple(tuple(sorted(int(names[w]) for w in own)) for own in assignment)
        for names in position_permutations(number)
    }


def by_hand(prior: WyckoffPrior, number: int, elements: list[int], way: Assignment) -> float:
    """Log-likelihood of one labelling, elements in Mendeleev's order, one site after the other."""
    computed = [
        (z, w)
        for z, own in sorted(
            zip(elements, way, strict=True), key=lambda item: element_rank()[item[0]]
        )
        for w in own
    ]
    numbers = torch.tensor([[z for z, _ in computed]])
    chosen = torch.tensor([[rows(number)[0] + w for _, w in computed]])
    with torch.inference_mode():
        logits = prior.logits(torch.tensor([number]), numbers, chosen)[0].double()
    p = logits.softmax(1)
    return sum(float(p[k, w].log()) for k, (_, w) in enumerate(computed))


@pytest.mark.parametrize(
    ("number", "elements", "counts"),
    [(221, [8, 38, 22], [3, 1, 1]), (12, [14, 29], [4, 2]), (216, [3, 9, 26], [4, 4, 4])],
)
def test_assignments_are_summed_over_their_labellings(prior, number, elements, counts):
    """Of each set that shifts of the origin turn into each other, the first one counts."""
    found = list(assignments(number, counts))
    computed = prior.of_assignments(number, elements, found)
    order = np.argsort(element_rank()[elements])
    shifts = origin_shifts(number).tolist()
    for value, assignment in zip(computed, found, strict=True):
        terms = []
        for way in labelled_ways(number, assignment):
            moved = [tuple(tuple(sorted(s[w] for w in own)) for own in way) for s in shifts]
            if [way[k] for k in order] == min([m[k] for k in order] for m in moved):
                terms.append(by_hand(prior, number, elements, way))
        assert value == pytest.approx(np.logaddexp.reduce(terms), abs=1e-4)


def test_the_order_of_elements_and_the_labelling_do_not_matter(prior):
    found = list(assignments(166, [3, 6, 3]))
    computed = prior.of_assignments(166, [29, 8, 11], found)
    turned = [(c, b, a) for a, b, c in found]
    assert (prior.of_assignments(166, [11, 8, 29], turned) == computed).all()
    for names in position_permutations(166).tolist():
        renamed = [tuple(tuple(names[w] for w in own) for own in a) for a in found]
        assert (prior.of_assignments(166, [29, 8, 11], renamed) == computed).all()
    assert (prior.of_assignments(166, [29, 8, 11], found[3:5]) == computed[3:5]).all()
    assert prior.of_assignments(166, [29, 8, 11], []).shape == (0,)


class TestBeam:
    @pytest.mark.parametrize(
        ("number", "elements", "counts"),
        [(221, [8, 38, 22], [3, 1, 1]), (12, [14, 29], [4, 6]), (71, [29, 14, 57], [4, 4, 2])],
    )
    def test_a_wide_one_tells_all_the_likeliest_first(self, prior, number, elements, counts):
        """The order is that of the likeliest labelling, times the share of the sites' numbers."""
        found = likely_assignments(prior, number, elements, counts, beam=20_000)
        assert sorted(found) == sorted(assignments(number, counts))
        place = np.argsort(element_rank()[elements]).tolist()
        shares = SiteBySite(number, [counts[k] for k in place]).site_counts()
        score = [
            max(by_hand(prior, number, elements, way) for way in labelled_ways(number, a))
            + np.log(shares[tuple(len(a[k]) for k in place)])
            for a in found
        ]
        assert (np.diff(score) < 1e-4).all()

    def test_a_narrow_one_tells_what_fits(self, prior):
        """In a space of eight million: all fit, none twice, and the same again."""
        asked = 47, [39, 56, 29, 8], [1, 2, 3, 7]
        found = likely_assignments(prior, *asked, beam=64)
        assert found == likely_assignments(prior, *asked, beam=64)
        assert 10 < len(found) == len(set(found)) <= 64
        positions = wyckoff_positions(47)
        for assignment in found:
            assert canonical(47, assignment)[0] == assignment
            for count, own in zip(asked[2], assignment, strict=True):
                assert sum(positions[w].multiplicity for w in own) == count
            fixed = [w for own in assignment for w in own if not positions[w].freedom]
            assert len(fixed) == len(set(fixed))

    def test_a_narrow_one_finds_likely_ones(self, prior):
        asked = 71, [29, 14, 57], [4, 4, 2]
        everything = likely_assignments(prior, *asked, beam=20_000)
        found = likely_assignments(prior, *asked, beam=16)
        places = [everything.index(a) for a in found]
        assert len(everything) > 4 * len(found) == 4 * len(set(places))
        assert places[:5] == [0, 1, 2, 3, 4]
        assert np.mean(places) < len(everything) / 3

    def test_the_shipped_prior_finds_a_known_crystal_beyond_the_limit(self):
        """YBa2Cu3O7 is not among the first 20,000 of eight million."""
        model = load_model("small")
        assert model.prior is not None
        data = reference_dataset()
        true = labelled(data)[data.id.tolist().index("YBa2Cu3O7")]
        asked = true.number, true.elements, true.counts
        assert likely_assignments(model.prior, *asked).index(true.assignment) < 5
        assert true.assignment not in set(assignments(47, true.counts))

    def test_nothing_fits(self, prior):
        assert likely_assignments(prior, 62, [29, 14], [6, 2]) == []
        with pytest.raises(InputError, match="give 1 to"):
            likely_assignments(prior, 62, [29], [0])


def test_fitting_is_repeatable(prior):
    again = fit_prior(reference_dataset(), epochs=3)
    other = fit_prior(reference_dataset(), epochs=3, seed=1)
    assert torch.equal(again.bias, prior.bias)
    assert not torch.equal(other.bias, prior.bias)


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


@pytest.mark.parametrize("moved", [True, False])
def test_the_origin_does_not_matter(moved):
    """The rows of a crystal are those of the smallest description, whichever it came with."""
    data = reference_dataset()
    _, numbers, chosen = assignment_table(data)
    found = site_positions(data)
    rank, start = element_rank(), table_start()
    changed = 0
    for k, first in enumerate(data.site_start[:-1]):
        own = slice(first, data.site_start[k + 1])
        number, offset = int(data.group[k]), start[data.group[k] - 1]
        shifts = origin_shifts(number)
        local = found[own] - offset
        if moved:  # described from the last origin instead
            local = shifts[-1][local]
        descriptions = []
        for shift in shifts:
            places = shift[local] + offset
            order = np.lexsort((places, rank[data.numbers[own]]))
            descriptions.append((tuple(places[order]), tuple(data.numbers[own][order])))
        smallest, elements = min(descriptions)
        real = numbers[k] > 0
        assert tuple(chosen[k][real].tolist()) == smallest
        assert tuple(numbers[k][real].tolist()) == elements
        changed += descriptions[0][0] != smallest
    assert changed > 10


def test_elements_are_described():
    known = element_properties()
    assert known.shape == (len(SYMBOLS), 9)
    # Pauling's electronegativity of oxygen and iron; 4s2 3d6
    assert known[8, 1] == 3.44
    assert known[26, 1] == 1.83
    assert known[26, 5:].tolist() == [2, 0, 6, 0]
    features = element_features()
    assert torch.isfinite(features).all()
    assert len(torch.unique(features, dim=0)) == len(SYMBOLS)
    assert not features[0].any()


def test_similar_elements_resemble_each_other():
    def names(symbol):
        return {SYMBOLS[z] for z in similar_elements()[atomic_number(symbol)].tolist()}

    assert names("Cl") == {"Cl", "Br", "I"}
    assert names("F") == {"F"}
    assert "Hf" in names("Zr")
    assert "Zr" in names("Hf")
    assert names("Fe") <= {"Fe", "Ru", "Os"}
    assert similar_elements()[0].tolist() == [0] * 4
    assert sorted(element_rank().tolist()) == list(range(len(SYMBOLS)))
    order = [SYMBOLS[z] for z in np.argsort(element_rank())]
    assert order.index("Na") < order.index("Fe") < order.index("O")


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="width is 0"):
        PriorConfig(width=0)


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
    starts = start_chains(requests, model, keys, SampleOptions().start_options())
    chains = Chains.start(model, starts, [r.space_group.number for r in requests], keys)
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


def test_other_sizes_come_back(tiny_model, tmp_path):
    config = PriorConfig(width=32, rounds=1, blocks=0)
    model = dataclasses.replace(tiny_model, prior=WyckoffPrior(config))
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert again.hash == model.hash
    assert again.prior.config == config


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "parts should be a table"),
        ({"width": -1}, "width is -1"),
        ({"depth": 1}, "unknown keys"),
    ],
)
def test_priors_that_do_not_fit_are_refused(tiny_model, prior, tmp_path, change, reason):
    path = tmp_path / "m.safetensors"
    save_model(path, dataclasses.replace(tiny_model, prior=prior))
    tensors, header = read_tensors(path, MODEL_FORMAT)
    parts = header.pop("parts")
    if change is not None:
        header["parts"] = {"prior": parts["prior"] | change}
    write_tensors(path, tensors, header)
    with pytest.raises(CheckpointError, match=reason):
        load_model(path)
