"""Several chains of a candidate: the same Wyckoff positions, and the likeliest is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

import langevin_xtal as lx
from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.likelihood import considered, log_likelihoods
from langevin_xtal.model.proposal import Proposal, Sites, draw
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.sampling.batches import MOST_EDGES
from langevin_xtal.sampling.postprocess import PostprocessConfig
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.sampling.start import start_chains
from langevin_xtal.sampling.streams import chain_keys, stream_keys
from langevin_xtal.symmetry.frames import frames
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

REQUESTS = [
    lx.Request(62, formula="KCl"),
    lx.Request(14, formula="ZrO2", z=4),
    lx.Request(136, {"Ti": 1, "O": 1}),
    lx.Request(2, formula="LiF", z=2),
    lx.Request(194, {"Zn": 1, "O": 2}),
    lx.Request(99, {"Ba": 1, "Ti": 1, "O": 2}),
]


def options(**changes: object) -> SampleOptions:
    settings = {
        "sampler": Ancestral(levels=4),
        "workers": 1,
        "attempts": 3,
        "postprocess": PostprocessConfig(min_distance=0.05),
    }
    return SampleOptions(**(settings | changes))  # type: ignore[arg-type]


def sampled(model: CrystalModel, chains: int, **changes: object) -> dict[int, Candidate]:
    found = sample_batches(REQUESTS, model, 5, options=options(chains=chains, **changes))
    return {c.index: c for outcome in found for c in outcome.candidates}


def likely(model: CrystalModel, candidates: Sequence[Candidate]) -> list[float]:
    assert model.precise_proposal is not None
    units = [c.unit for c in candidates]
    return log_likelihoods(model.precise_proposal, model.statistics, units).tolist()


@pytest.fixture(scope="module")
def model() -> CrystalModel:
    return load_model("small")


class TestSampling:
    @pytest.mark.parametrize("start", ["noise", "proposal"])
    def test_the_likeliest_is_kept(self, proposing_model: CrystalModel, start: str) -> None:
        """A first attempt has more and more chains to choose from; none is worse than before."""
        kept = [sampled(proposing_model, n, start=start, attempts=1) for n in (1, 2, 5)]
        changed = 0
        for few, more in pairwise(kept):
            assert few.keys() <= more.keys()
            for k, one in few.items():
                before, after = likely(proposing_model, [one, more[k]])
                same = np.array_equal(one.lattice, more[k].lattice)
                assert after == pytest.approx(before) if same else after > before
                changed += not same
        assert changed > 2
        # one of five is as likely to be the best as another
        assert len({c.provenance["chain"] for c in kept[-1].values()}) > 1
        assert all("chain" not in c.provenance for c in kept[0].values())

    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_batches_do_not_matter(self, proposing_model: CrystalModel, batch_size: int) -> None:
        one = sampled(proposing_model, 3)
        other = sampled(proposing_model, 3, batch_size=batch_size, workers=2)
        assert one.keys() == other.keys()
        assert one
        for k, candidate in one.items():
            assert np.array_equal(candidate.lattice, other[k].lattice)
            assert np.array_equal(candidate.frac, other[k].frac)

    @pytest.mark.parametrize("most", [1, 400])
    def test_chains_run_in_parts(
        self, proposing_model: CrystalModel, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        """Where those of a single candidate are too many to run side by side."""
        one = sampled(proposing_model, 5)
        monkeypatch.setitem(MOST_EDGES, "cpu", most)
        outcomes = list(
            sample_batches(
                REQUESTS, proposing_model, 5, options=options(chains=5), trajectory_every=2
            )
        )
        other = {c.index: c for o in outcomes for c in o.candidates}
        assert one.keys() == other.keys()
        for k, candidate in one.items():
            assert np.array_equal(candidate.frac, other[k].frac)
        frames = [t for o in outcomes for t in o.trajectories]
        assert len(frames) == len(other)
        for t in frames:
            assert t.candidate is other[t.candidate.index]
            assert np.allclose(t.lattice[-1], t.candidate.lattice)

    def test_one_wyckoff_position_of_each_site(self, proposing_model: CrystalModel) -> None:
        keys = stream_keys(3, torch.arange(6), torch.zeros(6, dtype=torch.int64))
        chosen = options(start="noise").start_options()
        first, second = (
            start_chains(REQUESTS, proposing_model, keys, chosen, chain=[c] * 6) for c in (0, 4)
        )
        moved = 0
        for a, b in zip(first, second, strict=True):
            assert a.positions is not None
            assert b.positions is not None
            assert [w.index for w in a.positions] == [w.index for w in b.positions]
            moved += not np.array_equal(a.frac, b.frac)
        assert moved >= 4  # all but those without free coordinates

    def test_rejections_are_one_for_an_attempt(self, proposing_model: CrystalModel) -> None:
        far = PostprocessConfig(min_distance=50.0)
        outcomes = list(
            sample_batches(
                REQUESTS, proposing_model, 5,
                options=options(chains=3, attempts=2, postprocess=far),
            )
        )  # fmt: skip
        lost = [(r.index, r.attempt) for o in outcomes for r in o.rejections]
        assert sorted(lost) == [(k, a) for k in range(len(REQUESTS)) for a in range(2)]

    def test_record(self) -> None:
        """What was recorded before there were several chains stays as it was."""
        assert "chains" not in SampleOptions().record()
        assert SampleOptions(chains=2).record()["chains"] == 2

    def test_chosen_settings(self, model: CrystalModel) -> None:
        found = lx.sample([lx.Request(formula="TiO2")] * 3, model, options=SampleOptions(chains=3))
        assert len(found) == 3


class TestRefusals:
    @pytest.mark.parametrize("chains", [0, 100_000])
    def test_numbers(self, chains: int) -> None:
        with pytest.raises(InputError, match="chains"):
            SampleOptions(chains=chains)

    def test_free_sites(self) -> None:
        with pytest.raises(InputError, match="same Wyckoff positions, which free sites"):
            SampleOptions(chains=2, positions="free")

    def test_without_a_proposal(self, assigning_model: CrystalModel) -> None:
        with pytest.raises(InputError, match="model assigning has none: give 1 chain"):
            sampled(assigning_model, 2)

    def test_without_a_prior(self, proposing_model: CrystalModel) -> None:
        model = dataclasses.replace(proposing_model, prior=None)
        with pytest.raises(InputError, match="without a prior, leaves free"):
            sampled(model, 2)


def test_streams_differ() -> None:
    keys = stream_keys(0, torch.arange(50), torch.zeros(50, dtype=torch.int64))
    every = torch.cat([chain_keys(keys, torch.full((50,), c)) for c in range(20)])
    assert torch.equal(every[:50], keys)
    assert len(every.unique()) == len(every)


class TestLikelihood:
    GROUPS = (2, 14, 36, 62, 99, 136, 166, 194, 225)

    def drawn(
        self, model: CrystalModel, seed: int, groups: Sequence[int] = GROUPS
    ) -> tuple[list[AsymmetricUnit], list[float]]:
        """Crystals that the proposal draws, and how likely it finds them by its own account."""
        proposal = model.precise_proposal
        assert proposal is not None
        asked = []
        for number in groups:
            last = len(wyckoff_positions(number)) - 1
            asked.append(Sites(number, (22, 8), (last, last)))
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(len(asked), 3, 3, generator=generator, dtype=torch.float64)
        normal = torch.randn(len(asked), 6, generator=generator, dtype=torch.float64)
        cold = torch.full((len(asked),), 0.3, dtype=torch.float64)
        found = draw(proposal, model.statistics, asked, uniform, normal, cold)
        units = []
        for sites, one in zip(asked, found, strict=True):
            lattice = cell_frame(torch.from_numpy(one.coordinates)[None]).rows[0].numpy()
            table = wyckoff_positions(sites.group)
            multiplicity = np.array([table[w].multiplicity for w in one.positions])
            numbers = np.array(sites.numbers)
            units.append(AsymmetricUnit(sites.group, lattice, numbers, one.frac, multiplicity))
        return units, [one.log_likelihood for one in found]

    def test_of_what_was_drawn(self, model: CrystalModel) -> None:
        """Drawing, site after site, and judging, all at once, say the same.

        Where what is drawn is among the descriptions that are considered, as in these groups two
        general positions mostly are; elsewhere what is drawn, at random, is often another one.
        """
        assert model.precise_proposal is not None
        equal = total = 0
        for seed in range(8):
            units, said = self.drawn(model, seed, (4, 36, 62))
            found = log_likelihoods(model.precise_proposal, model.statistics, units)
            here = np.array([self.is_considered(unit) for unit in units])
            equal += int(np.isclose(found, said, atol=0.02)[here].sum())
            total += int(here.sum())
        assert total >= 12
        assert equal == total

    @staticmethod
    def is_considered(unit: AsymmetricUnit) -> bool:
        """Whether the sites as they are, in their cell, are one of the descriptions judged."""
        found = considered(unit)
        apart = [one.frac - unit.frac[one.order] for one in found]
        return any(
            np.array_equal(one.basis, np.eye(3)) and np.allclose(d, d.round(), atol=1e-6)
            for one, d in zip(found, apart, strict=True)
        )

    def test_frames_do_not_matter(self, model: CrystalModel) -> None:
        """The same crystal in another basis and from another origin."""
        assert model.precise_proposal is not None
        units, _ = self.drawn(model, 7)
        moved = []
        for unit in units:
            table = frames(unit.group)
            m, shift = len(table.turn) - 1, table.shifts[-1]
            frac = unit.frac @ table.turn[m].T + table.origin[m] + shift
            lattice = table.basis[m].T @ unit.lattice
            moved.append(
                AsymmetricUnit(unit.group, lattice, unit.numbers, frac, unit.multiplicity)
            )
        one = log_likelihoods(model.precise_proposal, model.statistics, units)
        other = log_likelihoods(model.precise_proposal, model.statistics, moved)
        assert np.allclose(one, other, atol=1e-6)

    def test_members_are_averaged(self, model: CrystalModel) -> None:
        units, _ = self.drawn(model, 1)
        first = model.precise_proposal
        assert first is not None
        torch.manual_seed(0)
        second = Proposal(first.config).double().eval().requires_grad_(False)
        both = Proposal.of_members([first, second])
        one, other, mean = (
            log_likelihoods(p, model.statistics, units) for p in (first, second, both.double())
        )
        # of one description each, the mean lies between the halves and the larger
        assert (mean <= np.maximum(one, other) + 1e-6).all()
        assert (mean >= np.maximum(one, other) - np.log(2) - 1e-6).all()
