"""Requests that leave the setting open: which settings they get, in which order, repeatably."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice, pairwise

import numpy as np
import pytest
from scipy.special import betaln

import langevin_xtal as lx
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Choice, Request
from langevin_xtal.errors import InputError, RequestError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.settings import SettingModel, group_mask
from langevin_xtal.sampling.positions import ranked_assignments
from langevin_xtal.sampling.postprocess import PostprocessConfig
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.spread import (
    AGREEMENT,
    ENUMERATED,
    KNOWN_SHARE,
    PERSISTENCE,
    SMALLEST,
    SUCCESS,
    Setting,
    Spread,
    SpreadOptions,
    de_novo,
    settings_of,
    settled,
)
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.assignments import count_assignments
from langevin_xtal.symmetry.fitting import fits
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

RUTILE = Request(formula="TiO2", atoms=6)
SALT = Request(formula="NaCl", atoms=2)
SYSTEM = Request(elements=["Na", "Cl"])
NOTHING = Request()
MIXED = [RUTILE, SALT, NOTHING, RUTILE, SYSTEM, NOTHING, RUTILE, SALT, SYSTEM]

UNMIXED = SpreadOptions(known_share=0.0)

# whether candidates are the same is asked here, not whether they are good
ANYTHING = PostprocessConfig(min_distance=0.0)


def drawn(
    model: CrystalModel, requests: Sequence[Request], seed: int = 3, **changes: object
) -> list[Candidate]:
    options = {"sampler": lx.Ancestral(levels=2), "workers": 1, "attempts": 2,
               "postprocess": ANYTHING} | changes  # fmt: skip
    return lx.sample(requests, model, seed, options=SampleOptions(**options))  # type: ignore


def same(first: Sequence[Candidate], second: Sequence[Candidate]) -> bool:
    """To the last bit, and chosen in the same way."""
    return len(first) == len(second) and all(
        a.index == b.index
        and a.attempt == b.attempt
        and a.request == b.request
        and a.choice == b.choice
        and np.array_equal(a.frac, b.frac)
        and np.array_equal(a.lattice, b.lattice)
        for a, b in zip(first, second, strict=True)
    )


def choices(requests: Sequence[Request]) -> list[Choice]:
    """How each was chosen; none may be missing."""
    found = [r.choice for r in requests]
    assert None not in found
    return found  # type: ignore[return-value]


def setting(request: Request) -> tuple[object, ...]:
    """Everything discrete of a concrete request."""
    assert request.space_group is not None
    return request.space_group.number, tuple(request.counts.items()), request.assignment


@pytest.fixture(scope="module")
def rutile(open_model: CrystalModel) -> list[Setting]:
    """All settings of TiO2 with six atoms, as the model has them."""
    return list(settings_of(RUTILE, open_model, UNMIXED))


class TestSamples:
    """Candidates depend on the model, the requests and the seed, and on nothing else."""

    @pytest.fixture(scope="class")
    def mixed(self, open_model: CrystalModel) -> list[Candidate]:
        found = drawn(open_model, MIXED)
        assert len(found) > len(MIXED) / 2
        return found

    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2)])
    def test_batches_and_threads_change_nothing(
        self, open_model: CrystalModel, mixed: list[Candidate], batch_size: int, workers: int
    ) -> None:
        again = drawn(open_model, MIXED, batch_size=batch_size, workers=workers)
        assert same(mixed, again)

    def test_the_first_of_many_are_the_few(
        self, open_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        few = drawn(open_model, MIXED[:4])
        assert same([c for c in mixed if c.index < 4], few)

    def test_a_run_that_was_stopped_goes_on_with_the_same(
        self, open_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        """The later part alone: requests settled together, streams kept."""
        concrete = settled(MIXED, open_model, 3)
        options = SampleOptions(sampler=lx.Ancestral(levels=2), workers=1, attempts=2,
                                postprocess=ANYTHING)  # fmt: skip
        found: dict[int, Candidate] = {}
        for outcome in sample_batches(
            concrete[5:], open_model, 3, indices=range(5, len(MIXED)), options=options
        ):
            found |= {c.index: c for c in outcome.candidates}
        assert same([c for c in mixed if c.index >= 5], [found[k] for k in sorted(found)])

    def test_another_seed_gives_others(
        self, open_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        other = {c.index: c for c in drawn(open_model, MIXED, seed=4)}
        both = [(c, other[c.index]) for c in mixed if c.index in other]
        assert both
        for a, b in both:
            assert a.frac.shape != b.frac.shape or not np.array_equal(a.lattice, b.lattice)
            if MIXED[a.index] is not NOTHING:
                assert a.request == b.request  # settings of a composition hang on no seed

    def test_candidates_are_what_was_asked_for(self, mixed: list[Candidate]) -> None:
        for c in mixed:
            asked = MIXED[c.index]
            assert c.choice is not None
            if asked.formula is not None:
                assert Counter(lx.Request(1, formula=c.formula).units) == Counter(asked.units)
                centring = len(SpaceGroup(c.request.space_group.number).centring)
                assert c.multiplicity.sum() == asked.atoms * centring
            elif asked.elements:
                assert {SYMBOLS[z] for z in c.numbers} == set(asked.elements)


class TestOrder:
    def test_prefix(self, open_model: CrystalModel) -> None:
        eight = settled([RUTILE] * 8, open_model)
        four = settled([RUTILE] * 4, open_model)
        assert four == eight[:4]
        assert choices(four) == choices(eight)[:4]

    def test_other_requests_between_change_nothing(self, open_model: CrystalModel) -> None:
        alone = {r: settled([r] * 3, open_model) for r in (RUTILE, SYSTEM)}
        mixed = settled(MIXED, open_model)
        for request, expected in alone.items():
            mine = [mixed[k] for k, r in enumerate(MIXED) if r == request]
            assert mine == expected[: len(mine)]

    def test_equal_requests_get_different_settings(self, open_model: CrystalModel) -> None:
        """New settings in order of what a draw is likely to find, repeats only after them."""
        made = settled([RUTILE] * 24, open_model)
        for draw, number in Counter(map(setting, made)).items():
            assert [r.choice.draw for r in made if setting(r) == draw] == list(range(number))
        first = [r for r in made if r.choice.draw == 0]
        assert len(first) >= 12
        assert len({r.choice.rank for r in first}) == len(first)

    @pytest.mark.parametrize("request_", [RUTILE, SALT], ids=str)
    def test_no_sample_was_likelier_to_find_something_new_than_the_one_before(
        self, open_model: CrystalModel, request_: Request
    ) -> None:
        """E[p (1 − p)^draw] over the beta distribution that the module states, in closed form."""

        def chance(freedom: int, draw: int) -> float:
            mean = SUCCESS[min(freedom, len(SUCCESS) - 1)]
            a, b = mean * PERSISTENCE, (1 - mean) * PERSISTENCE
            return float(np.exp(betaln(a + 1, b + draw) - betaln(a, b)))

        gains = []
        for r in settled([request_] * 16, open_model):
            table = wyckoff_positions(r.space_group.number)
            freedom = sum(table[w].freedom for own in r.assignment for w in own)
            gains.append(r.choice.probability * chance(freedom, r.choice.draw))
        assert all(a >= b * (1 - 1e-9) for a, b in pairwise(gains))

    def test_settings_come_likeliest_first(self, rutile: list[Setting]) -> None:
        probability = [s.probability for s in rutile]
        assert probability == sorted(probability, reverse=True)
        assert [s.rank for s in rutile] == list(range(len(rutile)))
        assert len({(s.units, s.group, s.assignment) for s in rutile}) == len(rutile)


class TestSupport:
    """Which settings there are."""

    @pytest.mark.parametrize("request_", [RUTILE, SALT, Request(formula="C", atoms=4)], ids=str)
    def test_groups_are_those_whose_multiplicities_add_up(
        self, open_model: CrystalModel, request_: Request
    ) -> None:
        found = list(settings_of(request_, open_model, UNMIXED))
        per_unit = list(request_.units.values())
        units = request_.atoms // sum(per_unit)
        fitting = {
            number
            for number in range(1, 231)
            if fits(number, [units * n * len(SpaceGroup(number).centring) for n in per_unit])
        }
        assert fitting == set(np.flatnonzero(group_mask(tuple(units * n for n in per_unit))))
        model = open_model.settings
        assert model is not None
        first = found[0].composition
        log_p = model.log_groups([(first, units)])[0]
        likely = {number for number in fitting if np.exp(log_p[number]) >= 2 * SMALLEST}
        seen = {s.group for s in found}
        assert likely <= seen <= fitting
        assert len(seen) > 10

    def test_every_setting_has_the_atoms(self, rutile: list[Setting]) -> None:
        for s in rutile:
            table = wyckoff_positions(s.group)
            centring = len(SpaceGroup(s.group).centring)
            for n, own in zip(s.composition.counts, s.assignment, strict=True):
                assert sum(table[w].multiplicity for w in own) == n * s.units * centring
            used = [w for own in s.assignment for w in own if not table[w].freedom]
            assert len(set(used)) == len(used)
            assert s.units == 2

    def test_every_assignment_of_a_group_is_there(self, rutile: list[Setting]) -> None:
        """As many as Burnside's lemma counts, and their shares add up."""
        by_group = defaultdict(list)
        for s in rutile:
            by_group[s.group].append(s)
        whole = 0
        for number, own in by_group.items():
            counts = [n * own[0].units * len(SpaceGroup(number).centring)
                      for n in own[0].composition.counts]  # fmt: skip
            there = count_assignments(number, counts)
            if there <= ENUMERATED:
                whole += 1
                assert len(own) == there
            assert sum(s.assignment_probability for s in own) == pytest.approx(1.0)
            for s in own:
                assert s.group_probability == own[0].group_probability
                assert s.probability == pytest.approx(
                    s.group_probability * s.assignment_probability
                )
        assert whole > len(by_group) / 2

    def test_groups_have_the_models_probabilities(
        self, open_model: CrystalModel, rutile: list[Setting]
    ) -> None:
        model = open_model.settings
        assert model is not None
        p = np.exp(model.log_groups([(rutile[0].composition, 2)])[0])
        for s in rutile:
            assert s.group_probability == pytest.approx(p[s.group], rel=1e-5)

    @pytest.mark.parametrize("request_", [RUTILE, SALT, SYSTEM], ids=str)
    def test_nothing_is_lost(self, open_model: CrystalModel, request_: Request) -> None:
        """Probabilities of the settings so far and what is left out make 1."""
        spread = Spread(request_, open_model)
        assert spread.left_out == 1.0
        for k in (1, 9):
            total = sum(s.probability for s in islice(spread.settings(), k))
            assert 0 < total <= 1
            assert total + spread.left_out == pytest.approx(1.0)
        if request_ is SALT:
            total = sum(s.probability for s in spread.settings())
            assert total + spread.left_out == pytest.approx(1.0)
            assert spread.left_out < 230 * SMALLEST

    def test_training_crystals_of_the_very_composition_count_more(
        self, open_model: CrystalModel
    ) -> None:
        """Rutile and anatase get a share between them, the likelier one more of it."""
        mixed = {}
        for s in settings_of(RUTILE, open_model):
            mixed[s.group] = s.group_probability
            composition = s.composition
        model = open_model.settings
        assert model is not None
        assert model.known_settings(composition) == {(2, 136): 0.5, (2, 141): 0.5}
        p = np.exp(model.log_groups([(composition, 2)], as_new=True)[0])
        more = {n: mixed[n] - (1 - KNOWN_SHARE) * p[n] for n in mixed}
        assert more[136] + more[141] == pytest.approx(KNOWN_SHARE, rel=1e-4)
        agreed = (AGREEMENT + p[136]) / (AGREEMENT + p[141])
        assert more[136] / more[141] == pytest.approx(agreed, rel=1e-4)
        assert all(abs(more[n]) < 1e-5 for n in more if n not in (136, 141))

    def test_groups_narrow(self, open_model: CrystalModel, rutile: list[Setting]) -> None:
        """Only those named; among them all is as before."""
        some = Request(formula="TiO2", atoms=6, groups=(136, 141, 12))
        found = list(settings_of(some, open_model, UNMIXED))
        assert {s.group for s in found} == {12, 136, 141}
        before = {(s.group, s.assignment): s.probability for s in rutile
                  if s.group in some.groups}  # fmt: skip
        total = sum(before.values())
        assert len(found) == len(before)
        for s in found:
            expected = before[s.group, s.assignment] / total
            assert s.probability == pytest.approx(expected, rel=1e-6)

    def test_elements_in_one_group(self, open_model: CrystalModel) -> None:
        made = settled([Request(62, elements=["Ti", "O"])] * 12, open_model)
        assert {r.space_group.number for r in made} == {62}
        assert len({r.formula for r in made}) > 1
        assert all(set(r.units) == {"Ti", "O"} for r in made)

    def test_group_order(self, open_model: CrystalModel) -> None:
        spread = Spread(RUTILE, open_model, UNMIXED)
        share: dict[int, float] = defaultdict(float)
        for s in spread.settings():
            share[s.group] = s.group_probability
        order = spread.group_order()
        assert set(order) >= set(share)
        values = [share.get(number, 0.0) for number in order]
        assert values == sorted(values, reverse=True)

    def test_z_of_the_conventional_cell(self, open_model: CrystalModel) -> None:
        made = settled([Request(formula="TiO2", z=4)] * 12, open_model)
        assert {r.z for r in made} == {4}
        assert {sum(r.counts.values()) for r in made} == {12}
        primitive = {12 // len(SpaceGroup(r.space_group.number).centring) for r in made}
        assert len(primitive) > 1


class TestFormulasInAGroup:
    """Their Wyckoff positions are all that is left to choose."""

    # P, A, C, F, I and R cells; one formula that is no reduced one
    ASKED = (
        Request(62, formula="TiO2", z=4),
        Request(38, formula="NaCl", z=4),
        Request(12, formula="Ti2O4", z=4),
        Request(225, formula="TiO2", z=4),
        Request(139, formula="ClNa", z=4),
        Request(166, formula="TiO2", z=3),
    )

    @pytest.mark.parametrize("asked", ASKED, ids=str)
    def test_assignments_likeliest_first(self, open_model: CrystalModel, asked: Request) -> None:
        ranked = ranked_assignments(
            open_model.ranker,
            open_model.prior,
            asked.space_group.number,
            tuple(SYMBOLS.index(symbol) for symbol in asked.counts),
            tuple(asked.counts.values()),
        )
        assert ranked is not None
        found = list(settings_of(asked, open_model))
        assert [s.assignment for s in found] == ranked[0]
        assert np.allclose([s.probability for s in found], np.exp(ranked[1]))
        assert sum(s.probability for s in found) == pytest.approx(1.0)
        assert {s.group_probability for s in found} == {1.0}
        made = settled([asked] * 5, open_model)
        for request in made:
            assert (request.formula, request.z) == (asked.formula, asked.z)
            assert request.space_group == asked.space_group
            assert not request.leaves_choice
        assert made[0].assignment == ranked[0][0]
        assert made == settled([asked] * 8, open_model)[:5]

    def test_samples_differ_in_their_positions(self, open_model: CrystalModel) -> None:
        """A setting without free coordinates is hardly drawn twice."""
        asked = Request(47, formula="NaCl", z=1)
        every = list(settings_of(asked, open_model))
        assert not any(s.freedom for s in every)
        assert len(every) > 3
        made = settled([asked] * len(every), open_model)
        assert len({r.assignment for r in made}) > 0.6 * len(every)

    def test_a_model_without_settings(self, open_model: CrystalModel) -> None:
        bare = dataclasses.replace(open_model, settings=None)
        for asked in self.ASKED:
            assert settled([asked] * 3, bare) == settled([asked] * 3, open_model)
        found = drawn(bare, [self.ASKED[0]] * 3)
        assert same(found, drawn(open_model, [self.ASKED[0]] * 3))
        assert found

    def test_what_is_kept(self, open_model: CrystalModel) -> None:
        cell = (4.6, 4.6, 2.9)
        (made,) = settled([Request(136, formula="TiO2", z=2, lattice=cell)], open_model)
        assert made.lattice == (*cell, 90.0, 90.0, 90.0)
        placed = Request(136, formula="TiO2", z=2, fixed=[("Ti", (0.0, 0.0, 0.0))])
        named = Request(136, formula="TiO2", z=2, assignment=[["2a"], ["4f"]])
        sites = Request(136, {"Ti": 1, "O": 1})
        others = [placed, named, sites]
        assert settled(others, open_model) == others
        assert not any(request.leaves_choice for request in others)


class TestDeNovo:
    def test_seed_and_place(self, open_model: CrystalModel) -> None:
        one = [de_novo(NOTHING, open_model, 5, k) for k in range(4)]
        assert one == settled([NOTHING] * 4, open_model, 5)
        assert one == [de_novo(NOTHING, open_model, 5, k) for k in range(4)]
        other = [de_novo(NOTHING, open_model, 6, k) for k in range(4)]
        assert all(a != b for a, b in zip(one, other, strict=True))
        assert len(set(one)) == 4

    def test_requests_are_whole(
        self, open_model: CrystalModel, setting_model: SettingModel
    ) -> None:
        for request in settled([NOTHING] * 6, open_model, 1):
            assert not request.is_open
            table = wyckoff_positions(request.space_group.number)
            for n, own in zip(request.counts.values(), request.assignment, strict=True):
                assert sum(table[w].multiplicity for w in own) == n
            choice = request.choice
            assert 0 < choice.probability <= choice.group_probability <= 1
            assert choice.probability == pytest.approx(
                choice.group_probability * choice.assignment_probability
            )
            elements = [SYMBOLS.index(symbol) for symbol in request.elements]
            assert not setting_model.unknown_elements(elements)

    def test_groups_narrow(self, open_model: CrystalModel) -> None:
        some = Request(groups=tuple(range(195, 231)))
        made = settled([some] * 4, open_model, 2)
        assert {r.space_group.crystal_system for r in made} == {"cubic"}


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"formula": "TiO2", "atoms": 7}, "multiple of 3"),
            ({"formula": "TiO2", "atoms": 0}, "atoms is 0"),
            ({"formula": "TiO2", "atoms": 6, "z": 3}, "z = 3 contradicts 6 atoms"),
            ({"formula": "TiO2", "z": 0}, "z is 0"),
            ({"space_group": 225, "formula": "TiO2", "atoms": 6, "z": 2}, "leave out z or atoms"),
            ({"elements": ["Na", "Cl"], "atoms": 2}, "give a formula"),
            ({"elements": ["Na", "Cl"], "z": 2}, "give a formula"),
            ({"elements": ["Na", "Cl"], "formula": "NaCl"}, "both a formula and elements"),
            ({"atoms": 2}, "give a formula"),
            ({"space_group": 225, "formula": "NaCl", "groups": (1, 2)}, "both a space group"),
        ],
    )
    def test_contradictions(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(RequestError) as error:
            Request(**arguments)  # type: ignore[arg-type]
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_atoms_that_fit_no_group_allowed(self, open_model: CrystalModel) -> None:
        with pytest.raises(RequestError, match="fit none of the space groups"):
            settled([Request(formula="NaCl", atoms=2, groups=(62, 14))], open_model)

    def test_elements_that_no_training_crystal_has(self, open_model: CrystalModel) -> None:
        with pytest.raises(RequestError, match="no training crystal of model open has Xe"):
            settled([Request(formula="XeF2")], open_model)

    def test_a_model_without_settings(self, open_model: CrystalModel) -> None:
        without = dataclasses.replace(open_model, settings=None)
        for request in (RUTILE, SYSTEM, NOTHING):
            with pytest.raises(RequestError, match="no distribution over space groups"):
                settled([request], without)

    def test_open_requests_are_settled_first(self, open_model: CrystalModel) -> None:
        with pytest.raises(InputError, match="settle it first"):
            next(sample_batches([RUTILE], open_model))


@pytest.mark.parametrize(
    "formula",
    [
        *("TiO2", "LiFePO4", "CsPbI3"),
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("SiO2", "Cu2KSi", "Fe2O3")),
    ],
)
@pytest.mark.usefixtures("few_assignments")
def test_the_first_sample_is_the_likeliest_setting(open_model: CrystalModel, formula: str) -> None:
    spread = Spread(Request(formula=formula), open_model)
    choices = [spread[k].choice for k in range(12)]
    assert choices[0] is not None
    assert (choices[0].rank, choices[0].draw) == (0, 0)
    drawn = [(c.rank, c.draw) for c in choices if c is not None]
    assert len(set(drawn)) == len(drawn) == 12
