"""Where the candidates of a search go: likely settings, a share of even exploration."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from ase.db import connect
from hypothesis import given
from hypothesis import strategies as st

from langevin_xtal.cli import run
from langevin_xtal.config.screening import FilterOptions
from langevin_xtal.crystal.request import Request, parse_formula
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, InputError, RequestError
from langevin_xtal.model.checkpoint import CrystalModel, load_model, save_model
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.sampling.spread import Spread
from langevin_xtal.search.allocation import SAMPLES, Even, Likely, _split, why_even
from langevin_xtal.search.campaign import TABLE, Campaign
from langevin_xtal.search.rows import to_json
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import read_rows
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from langevin_xtal.train.settings import fit_settings

pytestmark = pytest.mark.usefixtures("few_assignments")

QUICK = SampleOptions(batch_size=8, attempts=2, sampler=Ancestral(levels=3))


@pytest.fixture(scope="module")
def model() -> CrystalModel:
    """A shipped model that knows the settings of the built-in structure types."""
    small = load_model("small")
    assert small.ranker is not None
    settings = fit_settings(reference_dataset(), small.ranker.resemblance().detach(), epochs=1)
    return dataclasses.replace(small, name="settled", settings=settings)


@pytest.fixture(scope="module")
def blind(model: CrystalModel) -> CrystalModel:
    """The same without."""
    return dataclasses.replace(model, name="blind", settings=None)


def space_of(model: CrystalModel, **changes: Any) -> SearchSpace:
    return SearchSpace(**({"elements": ["Na", "Cl"], "model": model} | changes))


def plain(request: Request) -> tuple[Any, ...]:
    """Everything a request asks for, and how it was chosen."""
    return (*map(str, (request, request.assignment, request.choice)), request.elements)


def content(store: Path) -> list[str]:
    return [str(to_json(row)) for row in read_rows(store)]


def quick(store: Path, model: CrystalModel, **changes: Any) -> Campaign:
    options: dict[str, Any] = {"max_samples": 10, "sampling": QUICK, "workers": 1, "seed": 3}
    return Campaign(store, space_of(model), model, **(options | changes))


class TestLikely:
    @given(st.integers(0, 400), st.fractions(0, 1, max_denominator=12))
    def test_shares_are_exact(self, index: int, share: Fraction) -> None:
        chosen = [_split(k, share) for k in range(index + 1)]
        some = [first for first, _ in chosen if first is not None]
        others = [second for first, second in chosen if first is None]
        assert some == list(range(len(some)))
        assert others == list(range(len(others)))
        assert len(some) == int((index + 1) * share)

    def test_a_fifth_explores_as_an_even_search_would(self, model: CrystalModel) -> None:
        space = space_of(model)
        likely, even = Likely(space, model, 5), Even(space, 5)
        asked = [likely.request(k) for k in range(50)]
        explored = [request for request in asked if request.choice is None]
        assert explored == [even.request(k) for k in range(10)]
        assert [k for k in range(50) if asked[k].choice is None] == list(range(4, 50, 5))

    def test_the_others_go_in_the_order_of_the_spread(self, model: CrystalModel) -> None:
        likely = Likely(space_of(model), model, 5)
        spread = Spread(Request(elements=["Na", "Cl"]), model)
        asked = [r for r in map(likely.request, range(40)) if r.choice is not None]
        assert [plain(r) for r in asked] == [plain(spread[k]) for k in range(32)]
        ranks = [r.choice.rank for r in asked if r.choice is not None]
        assert 0 in ranks[:5]
        assert "NaCl" in {r.formula for r in asked}

    def test_any_order_of_asking_gives_the_same(self, model: CrystalModel) -> None:
        one, other = (Likely(space_of(model), model, 1, subsystems=0.0) for _ in range(2))
        order = np.random.default_rng(0).permutation(30)
        shuffled = {int(k): plain(one.request(int(k))) for k in order}
        assert [shuffled[k] for k in range(30)] == [plain(other.request(k)) for k in range(30)]

    def test_all_or_nothing_explores(self, model: CrystalModel) -> None:
        space = space_of(model, space_groups=[221, 225])
        even = Even(space, 2)
        nothing, everything = (Likely(space, model, 2, explore=share) for share in (0.0, 1.0))
        assert all(nothing.request(k).choice is not None for k in range(20))
        assert [everything.request(k) for k in range(20)] == [even.request(k) for k in range(20)]

    def test_groups_narrow_where_they_are_named(self, model: CrystalModel) -> None:
        common = set(space_of(model).groups)
        free = Likely(space_of(model, elements=["Ca", "F"]), model, 0, explore=0.0)
        groups = {free.request(k).space_group.number for k in range(60)}
        assert groups - common
        named = Likely(space_of(model, space_groups="225,221"), model, 0, explore=0.3)
        assert {named.request(k).space_group.number for k in range(40)} == {221, 225}

    def test_sites_and_atoms_are_limited_where_asked_for(self, model: CrystalModel) -> None:
        free = Likely(space_of(model), model, 0, explore=0.0)
        asked = [free.request(k) for k in range(80)]
        assert max(sites(r) for r in asked) > 3
        assert max(sum(r.counts.values()) for r in asked) > 8
        narrow = Likely(space_of(model, max_sites=3), model, 0, explore=0.0, max_atoms=8)
        asked = [narrow.request(k) for k in range(80)]
        assert max(sites(r) for r in asked) <= 3
        assert max(sum(r.counts.values()) for r in asked) <= 8

    def test_formulas_take_turns(self, model: CrystalModel) -> None:
        space = SearchSpace(formulas=["NaCl", "NaCl3"], model=model)
        likely = Likely(space, model, 0, explore=0.0)
        asked = [likely.request(k) for k in range(20)]
        assert [r.formula for r in asked] == ["NaCl", "NaCl3"] * 10
        spread = Spread(Request(formula="NaCl"), model)
        assert [plain(r) for r in asked[::2]] == [plain(spread[k]) for k in range(10)]
        some = SearchSpace(formulas=["NaCl"], z=[4, 8], model=model)
        likely = Likely(some, model, 0, explore=0.0)
        assert [likely.request(k).z for k in range(6)] == [4, 8] * 3

    def test_all_formulas_stay_small(self, model: CrystalModel) -> None:
        space = space_of(model, elements=["Ca", "Ti", "O"], formulas="all", max_formula_atoms=5)
        likely = Likely(space, model, 0, explore=0.0)
        formulas = {likely.request(k).formula for k in range(40)}
        assert max(sum(parse_formula(str(f)).values()) for f in formulas) <= 5
        assert "CaTiO3" in formulas

    def test_a_formula_beyond_24_atoms(self, model: CrystalModel) -> None:
        # four formula units of 7 atoms: an even search before 0.6 knew no such cell
        space = SearchSpace(formulas=["LiFePO4"], space_groups=[62], model=model)
        assert [(r.space_group.number, r.z) for r in space] == [(62, 4)]

    def test_subsystems(self, model: CrystalModel) -> None:
        space = space_of(model, elements=["Ca", "Ti", "O"])
        likely = Likely(space, model, 0, explore=0.2, subsystems=0.25)
        asked = [likely.request(k) for k in range(100)]
        sizes = Counter(len(r.elements) for r in asked)
        assert sizes == {3: 80, 2: 20}
        pairs = Counter(frozenset(r.elements) for r in asked if len(r.elements) == 2)
        every = {frozenset(pair) for pair in itertools.combinations(space.elements, 2)}
        assert set(pairs) <= every
        assert max(pairs.values()) - min(pairs.values()) <= 1

    def test_nothing_fits(self, model: CrystalModel, tmp_path: Path) -> None:
        space, store = space_of(model, space_groups=[225]), tmp_path / "s.db"
        with pytest.raises(RequestError, match="fit none of the space groups"):
            Likely(space, model, 0, max_atoms=1).request(0)
        with pytest.raises(RequestError):
            Campaign(store, space, model, filters=FilterOptions(max_atoms=1)).run()
        assert not store.exists()

    def test_why_even(self, model: CrystalModel, blind: CrystalModel) -> None:
        assert not why_even(space_of(model), model)
        assert "blind does not know" in why_even(space_of(model), blind)
        assert "has Lr" in why_even(space_of(model, elements=["Na", "Lr"]), model)
        many = ["Na", "Cl", "O", "Ti", "Ca", "F", "S"]
        assert "7 elements" in why_even(space_of(model, elements=many), model)


def sites(request: Request) -> int:
    assert request.assignment is not None
    table = wyckoff_positions(request.space_group.number)
    held = [table[w].multiplicity for own in request.assignment for w in own]
    assert sum(held) == sum(request.counts.values())
    return len(held)


class TestCampaign:
    def test_stopped_grown_and_shared(self, model: CrystalModel, tmp_path: Path) -> None:
        whole, grown = tmp_path / "whole.db", tmp_path / "grown.db"
        quick(whole, model).run()
        quick(grown, model, max_samples=3).run()
        assert len(read_rows(grown)) == 3

        def press(title: str, done: int, planned: int) -> None:
            if title == "sampling" and done > 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quick(grown, model).run(press)
        quick(grown, model).run()
        assert content(grown) == content(whole)
        if hasattr(os, "fork"):
            shared = tmp_path / "shared.db"
            context = multiprocessing.get_context("fork")
            workers = [context.Process(target=quick(shared, model).run) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
                assert worker.exitcode == 0
            assert content(shared) == content(whole)

    def test_probability_and_rank_are_kept(self, model: CrystalModel, tmp_path: Path) -> None:
        campaign = quick(tmp_path / "s.db", model)
        campaign.run()
        allocation = campaign.plan.allocation
        database = connect(tmp_path / "s.db")
        for row in read_rows(tmp_path / "s.db"):
            choice = allocation.request(row.index).choice
            (found,) = database.select(candidate=row.index)
            if choice is None:
                assert "setting_rank" not in row.provenance
                assert "setting_rank" not in found
                continue
            assert row.provenance["setting_rank"] == choice.rank == found.setting_rank
            assert found.setting_probability == pytest.approx(choice.probability, rel=1e-6)
        table = campaign.best()
        assert list(table.columns) == list(TABLE)
        of = {row.uid: row for row in read_rows(tmp_path / "s.db")}
        for line in table.itertuples():
            rank = of[line.uid].provenance.get("setting_rank")
            assert pandas.isna(line.setting_rank) if rank is None else line.setting_rank == rank

    def test_without_settings_it_is_even(
        self, model: CrystalModel, blind: CrystalModel, tmp_path: Path
    ) -> None:
        campaign = quick(tmp_path / "blind.db", blind, samples_per_request=2)
        assert campaign.remark == (
            "model blind does not know which settings are likely: candidates are spread evenly"
        )
        even = quick(tmp_path / "even.db", blind, allocate="even", samples_per_request=2)
        assert even.remark == ""
        for k in range(30):
            space = campaign.plan.space
            asked = space[int(space.schedule(3)[k % len(space)])]
            assert campaign.plan.request(k) == even.plan.request(k) == asked
        assert not quick(tmp_path / "s.db", model).remark

    def test_how_many(self, model: CrystalModel, tmp_path: Path) -> None:
        def total(**options: Any) -> int:
            return quick(tmp_path / "s.db", model, **({"max_samples": None} | options)).plan.total

        requests = len(space_of(model))
        assert total() == SAMPLES
        assert total(max_samples=10_000) == 10_000
        assert total(samples_per_request=2) == 2 * requests
        assert total(allocate="even") == 60 * requests
        assert total(allocate="even", samples_per_request=2) == 2 * requests
        assert total(allocate="even", samples_per_request=2, max_samples=5) == 5

    def test_another_allocation_is_another_campaign(
        self, model: CrystalModel, tmp_path: Path
    ) -> None:
        store = tmp_path / "s.db"
        quick(store, model, max_samples=2).run()
        for changes, message in (
            ({"allocate": "even"}, 'allocate is "likely", not "even"'),
            ({"explore": 0.5}, "explore is 0.2, not 0.5"),
            ({"subsystems": 0.5}, "subsystems is 0.0, not 0.5"),
        ):
            with pytest.raises(DataError, match=message):
                quick(store, model, **changes).run()
        named = SearchSpace(["Na", "Cl"], "common", model=model)
        with pytest.raises(DataError, match='likely_groups is "all"'):
            Campaign(store, named, model, max_samples=2, sampling=QUICK, seed=3).run()

    def test_bad_options(self, model: CrystalModel, tmp_path: Path) -> None:
        for changes, message in (
            ({"allocate": "best"}, "allocate is 'best'"),
            ({"explore": 1.5}, "explore is 1.5"),
            ({"subsystems": -0.1}, "subsystems is -0.1"),
            ({"allocate": "even", "explore": 0.1}, "explore is a share"),
        ):
            with pytest.raises(InputError, match=message):
                quick(tmp_path / "s.db", model, **changes)

    def test_command(self, model: CrystalModel, tmp_path: Path, capsys: Any) -> None:
        path, store = tmp_path / "settled.safetensors", tmp_path / "s.db"
        save_model(path, model)
        asked = ["search", "--elements", "Na,Cl", "--max-samples", "5", "--levels", "4",
                 "--workers", "1", "--model", str(path), "--out", str(store)]  # fmt: skip
        assert run(asked) == 0
        reported = capsys.readouterr().out
        assert "5 candidates, most of them at likely settings in any space group" in reported
        assert "  setting" in reported
        assert sum("setting_rank" in row.provenance for row in read_rows(store)) == 4
        assert run([*asked, "--allocate", "even"]) == 2
        assert "its allocate is" in capsys.readouterr().err
