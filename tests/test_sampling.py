"""Sampling: a candidate depends on weights, request, seed and index, and on nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import langevin_xtal as lx
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion import noising
from langevin_xtal.errors import InputError, SamplingError
from langevin_xtal.graph import CrystalArrays, build_multigraph
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.report.bench import requests_like
from langevin_xtal.sampling import batches as batches_module
from langevin_xtal.sampling import chain
from langevin_xtal.sampling.batches import EDGES_TO_ALL, expected_edges, packed
from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.draw_requests import MAX_ATOMS, draw_sites
from langevin_xtal.sampling.postprocess import PostprocessConfig, Rejection, contains_group
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.samplers import Ancestral, AnnealedLangevin, make_sampler, run
from langevin_xtal.sampling.spread import settled
from langevin_xtal.sampling.start import Start, start_chains
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.symmetry import SpaceGroup, lattice_freedom, orbit, snap_site
from langevin_xtal.symmetry.lattice import fixed_coordinates
from langevin_xtal.symmetry.wyckoff import locate
from tests.device_waits import HostWaits

MIXED = [
    lx.Request(62, {"Cu": 2, "Si": 1, "K": 1}),
    lx.Request("Fm-3m", {"Na": 1, "Cl": 1}),
    lx.Request(194, {"Zn": 1, "O": 2}),
    lx.Request(16, {"Fe": 1}),
    lx.Request(139, {"Ba": 1, "Fe": 1, "As": 2}),
    lx.Request(166, {"Bi": 1, "Te": 2}),
    lx.Request(227, {"Mg": 1, "Al": 1, "O": 1}),
    lx.Request("Pm-3m", {"Sr": 1, "Ti": 1, "O": 1}),
    lx.Request(14, {"Zr": 1, "O": 2}),
    lx.Request("P-1", {"Li": 2, "F": 1}),
]
N = len(MIXED)
QUICK = Ancestral(levels=6)
ANYTHING = PostprocessConfig(min_distance=0.05)
"""Keeps nearly everything: most tests are of the chains, not of the crystals they end in."""


def options(**changes: object) -> SampleOptions:
    settings = {"sampler": QUICK, "workers": 1, "postprocess": ANYTHING, "attempts": 2}
    return SampleOptions(**(settings | changes))  # type: ignore[arg-type]


def draw(
    model: CrystalModel, requests: Sequence[lx.Request], seed: int = 3, **changes: object
) -> list[Candidate]:
    return lx.sample(requests, model, seed, options=options(**changes))


def same(first: Sequence[Candidate], second: Sequence[Candidate]) -> bool:
    """To the last bit."""
    return len(first) == len(second) and all(
        a.index == b.index
        and a.attempt == b.attempt
        and a.request == b.request
        and np.array_equal(a.frac, b.frac)
        and np.array_equal(a.lattice, b.lattice)
        and np.array_equal(a.atom_frac, b.atom_frac)
        for a, b in zip(first, second, strict=True)
    )


def chains_of(
    model: CrystalModel, requests: Sequence[lx.Request], seed: int = 0, **changes: object
) -> Chains:
    """Chains at their start."""
    n = len(requests)
    keys = stream_keys(seed, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    starts = start_chains(requests, model, keys, options(**changes).start_options())
    return Chains.start(model, starts, [r.space_group.number for r in requests], keys)


@pytest.fixture(scope="module")
def mixed(tiny_model: CrystalModel) -> list[Candidate]:
    """Two of each request, in one batch."""
    return draw(tiny_model, MIXED * 2, batch_size=32)


class Poisoned(nn.Module):
    """The network, with one number in place of the outputs of the crystals that hold an element.

    Elements tell crystals apart whatever the batch they are in.
    """

    def __init__(self, inner: nn.Module, element: str, value: float, column: int) -> None:
        super().__init__()
        self.inner, self.value, self.column = inner, value, column
        self.number = SYMBOLS.index(element)
        self.config = inner.config
        self.hits = 0

    def forward(self, g: GraphBatch, sigma_pos: Tensor, sigma_lat: Tensor) -> Tensor:
        out = self.inner(g, sigma_pos, sigma_lat).clone()
        sick = torch.zeros(len(sigma_pos), dtype=torch.bool)
        sick[g.site_crystal[g.numbers == self.number]] = True
        self.hits += int(sick.any())
        out[sick[g.site_crystal[g.source]], self.column] = self.value
        return out


class TestReproducible:
    def test_same_seed_same_candidates(
        self, tiny_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        assert len(mixed) >= 1.5 * N
        assert same(mixed, draw(tiny_model, MIXED * 2, batch_size=32))

    def test_another_seed_gives_others(
        self, tiny_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        other = {c.index: c for c in draw(tiny_model, MIXED * 2, seed=4, batch_size=32)}
        shared = [(c, other[c.index]) for c in mixed if c.index in other]
        assert shared
        assert not any(np.array_equal(a.lattice, b.lattice) for a, b in shared)

    def test_requests_repeated_give_different_candidates(self, mixed: list[Candidate]) -> None:
        by_index = {c.index: c for c in mixed}
        pairs = [(k, k + len(MIXED)) for k in range(len(MIXED))]
        pairs = [(a, b) for a, b in pairs if a in by_index and b in by_index]
        assert pairs
        for a, b in pairs:
            assert not np.array_equal(by_index[a].lattice, by_index[b].lattice)

    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (7, 1), (64, 1)])
    def test_batches_and_workers_change_nothing(
        self, tiny_model: CrystalModel, mixed: list[Candidate], batch_size: int, workers: int
    ) -> None:
        again = draw(tiny_model, MIXED * 2, batch_size=batch_size, workers=workers)
        assert same(mixed, again)

    def test_indices_give_part_of_a_list(
        self, tiny_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        chosen = [N + 5, 2, 7]
        requests = [(MIXED * 2)[k] for k in chosen]
        found = [
            c
            for outcome in sample_batches(
                requests, tiny_model, 3, indices=np.array(chosen), options=options()
            )
            for c in outcome.candidates
        ]
        assert same(sorted(found, key=lambda c: c.index), [c for c in mixed if c.index in chosen])

    @pytest.mark.parametrize("indices", [[0, 0], [0], [0, 1, 2]])
    def test_indices_must_fit_the_requests(
        self, tiny_model: CrystalModel, indices: list[int]
    ) -> None:
        with pytest.raises(InputError, match="different indices"):
            list(sample_batches(MIXED[:2], tiny_model, indices=indices))

    def test_first_of_many_are_the_first(self, tiny_model: CrystalModel) -> None:
        request = [MIXED[1]]
        many = draw(tiny_model, request * 24)
        few = draw(tiny_model, request * 8)
        assert len(few) >= 6
        assert same(few, [c for c in many if c.index < 8])

    def test_nothing_asked_nothing_given(self, tiny_model: CrystalModel) -> None:
        assert draw(tiny_model, []) == []

    def test_weights_are_left_alone(self, tiny_model: CrystalModel) -> None:
        before = tiny_model.hash
        candidate = draw(tiny_model, MIXED[1:2] * 4)[0]
        assert tiny_model.hash == before == candidate.provenance["weights"]
        assert torch.get_num_threads() == 1


class TestCandidates:
    def test_elements_sites_and_cell_are_as_asked(self, mixed: list[Candidate]) -> None:
        for c in mixed:
            assert c.request == (MIXED * 2)[c.index]
            assert [SYMBOLS[z] for z in c.numbers] == [
                s for s, n in c.request.sites.items() for _ in range(n)
            ]
            assert {str(s) for s in c.structure.symbol_set} == set(c.request.sites)
            assert len(c.structure) == len(c.atoms) == len(c.atom_site) == c.multiplicity.sum()
            assert np.linalg.det(c.lattice) > 0
            assert ((c.frac >= 0) & (c.frac < 1) & np.isfinite(c.frac)).all()
            assert ((c.atom_frac >= 0) & (c.atom_frac < 1)).all()

    def test_cell_has_the_shape_of_its_system(self, mixed: list[Candidate]) -> None:
        gammas = {"hexagonal": 120.0, "trigonal": 120.0}
        for c in mixed:
            a, b, _ = lengths = np.array(c.structure.lattice.abc)
            system = c.space_group.crystal_system
            gamma = gammas.get(system, 90.0)
            angles = np.array(c.structure.lattice.angles)
            fixed = {"triclinic": [], "monoclinic": [0, 2]}.get(system, [0, 1, 2])
            np.testing.assert_allclose(angles[fixed], np.array([90, 90, gamma])[fixed], atol=1e-9)
            assert ((angles > chain.SHARPEST) & (angles < 180 - chain.SHARPEST)).all()
            if system in gammas or system in ("tetragonal", "cubic"):
                assert a == pytest.approx(b, abs=1e-12)
            if system == "cubic":
                np.testing.assert_allclose(lengths, a, atol=1e-12)

    def test_requested_group_or_a_supergroup(self, mixed: list[Candidate]) -> None:
        for c in mixed:
            numbers = c.numbers[c.atom_site]
            assert contains_group(c.lattice, c.atom_frac, numbers, c.space_group, symprec=1e-2)
            assert c.is_supergroup == (c.detected[1e-2] != c.space_group.number)
            if c.is_supergroup:
                found = SpaceGroup(c.detected[1e-2])
                shrunk = found.order / len(found.centring)
                asked = c.space_group.order / len(c.space_group.centring)
                assert shrunk >= asked or len(found.centring) != len(c.space_group.centring)

    def test_sites_lie_exactly_on_their_positions(self, mixed: list[Candidate]) -> None:
        special = 0
        for c in mixed:
            group = c.space_group
            for point, multiplicity in zip(c.frac, c.multiplicity, strict=True):
                images, _ = orbit(point, group.rotations, group.translations, c.lattice)
                assert len(images) == multiplicity
                delta = point @ np.swapaxes(group.rotations, 1, 2) + group.translations - point
                delta -= np.rint(delta)
                stays = np.linalg.norm(delta @ c.lattice, axis=1) < 1e-3
                assert stays.sum() * multiplicity == group.order
                assert np.abs(delta[stays]).max() < 1e-12
                special += multiplicity < group.order
                again = snap_site(point, group.rotations, group.translations, c.lattice, 0.3)
                assert np.linalg.norm((again - point) @ c.lattice) < 0.3
        assert special > 3

    def test_distances_are_respected(self, tiny_model: CrystalModel) -> None:
        config = PostprocessConfig(min_distance=0.8)
        outcomes = list(
            sample_batches(MIXED * 2, tiny_model, 3, options=options(postprocess=config))
        )
        kept = [c for o in outcomes for c in o.candidates]
        lost = [r for o in outcomes for r in o.rejections]
        assert kept
        assert lost
        for c in kept:
            near = c.structure.distance_matrix + 1e3 * np.eye(len(c.structure))
            shortest = min(near.min(), *c.structure.lattice.get_lll_reduced_lattice().abc)
            assert c.min_distance == pytest.approx(shortest, abs=1e-6)
            assert c.min_distance >= 0.8

    def test_rejections_say_why_and_are_tried_again(self, tiny_model: CrystalModel) -> None:
        config = PostprocessConfig(min_distance=30.0)
        outcomes = list(
            sample_batches(
                MIXED[:3], tiny_model, 0, options=options(postprocess=config, attempts=3)
            )
        )
        lost = [r for o in outcomes for r in o.rejections]
        assert {(r.index, r.attempt) for r in lost} == {(i, a) for i in range(3) for a in range(3)}
        for r in lost:
            assert r.request == MIXED[r.index]
            assert r.reason.startswith(("overlap: ", "diverged: "))
            assert "\n" not in r.reason

    def test_a_second_attempt_is_another_stream(self, tiny_model: CrystalModel) -> None:
        first = {c.index: c for c in draw(tiny_model, MIXED[:1] * 12, attempts=1)}
        middle = sorted(c.min_distance for c in first.values())[len(first) // 2]
        strict = PostprocessConfig(min_distance=middle)  # rejects half of the first attempts
        found = draw(tiny_model, MIXED[:1] * 12, postprocess=strict, attempts=6)
        again = [c for c in found if c.attempt > 0 and c.index in first]
        assert again
        for c in again:
            assert not np.array_equal(first[c.index].lattice, c.lattice)
            assert c.provenance["attempt"] == c.attempt


class TestAssignedPositions:
    @pytest.fixture(scope="class")
    def assigned(self, assigning_model: CrystalModel) -> list[Candidate]:
        return draw(assigning_model, MIXED * 2, batch_size=32)

    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (64, 1)])
    def test_batches_and_workers_change_nothing(
        self,
        assigning_model: CrystalModel,
        assigned: list[Candidate],
        batch_size: int,
        workers: int,
    ) -> None:
        assert len(assigned) >= 8
        again = draw(assigning_model, MIXED * 2, batch_size=batch_size, workers=workers)
        assert same(assigned, again)

    def test_free_positions_ignore_the_prior(
        self, assigning_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        assert same(mixed, draw(assigning_model, MIXED * 2, batch_size=32, positions="free"))

    def test_sites_stay_on_the_positions_drawn(self, assigning_model: CrystalModel) -> None:
        chains = chains_of(assigning_model, MIXED)
        before = chains.frac.clone()
        for _ in run(QUICK, chains):
            pass
        assert chains.confined.all()
        freedom = chains.free_space.diagonal(dim1=1, dim2=2).sum(1).round()
        assert len(set(freedom.tolist())) >= 3
        delta = chains.frac - before
        delta = delta - delta.round()
        assert delta[freedom == 0].abs().max() < 1e-12
        assert delta[freedom > 0].abs().amax(1).min() > 1e-4
        for point, start, crystal in zip(chains.frac, before, chains.site_crystal, strict=True):
            group, lattice = MIXED[int(crystal)].space_group, chains.lattice[crystal].numpy()
            images = [
                len(orbit(x.numpy(), group.rotations, group.translations, lattice)[0])
                for x in (start, point)
            ]
            assert images[0] == images[1]

    def test_elements_and_group_are_as_asked(self, assigned: list[Candidate]) -> None:
        for c in assigned:
            assert set(c.atoms.get_chemical_symbols()) == set(c.request.sites)
            assert contains_group(
                c.lattice, c.atom_frac, c.numbers[c.atom_site], c.space_group, symprec=1e-2
            )


SYSTEMS = [1, 2, 3, 4, 5, 8, 12, 14, 15, 19, 62, 99, 136, 146, 166, 173, 194, 198, 221, 225]
"""Groups of every crystal system, with and without special positions, polar or not."""

FORMULAS = [lx.Request(n, formula="TiO2") for n in SYSTEMS]


class TestFormulas:
    @pytest.fixture(scope="class")
    def sampled(self, proposing_model: CrystalModel) -> list[Candidate]:
        return draw(proposing_model, FORMULAS, batch_size=64, attempts=4)

    def test_composition_and_group_are_exact(self, sampled: list[Candidate]) -> None:
        assert len(sampled) > 0.8 * len(FORMULAS)
        systems = {c.space_group.crystal_system for c in sampled}
        assert len(systems) == 7
        for c in sampled:
            atoms = c.atoms.get_chemical_symbols()
            assert {s: atoms.count(s) for s in set(atoms)} == c.request.counts
            assert c.formula == "TiO2"
            numbers = c.numbers[c.atom_site]
            assert contains_group(c.lattice, c.atom_frac, numbers, c.space_group, symprec=1e-3)

    @pytest.mark.parametrize("start", ["proposal", "noise"])
    def test_sites_stay_on_their_positions_at_every_step(
        self, proposing_model: CrystalModel, start: str
    ) -> None:
        """Operations that fix a generic point of a site's position fix the site, to rounding."""
        model, requests = proposing_model, FORMULAS + MIXED
        keys = stream_keys(1, torch.arange(len(requests)), torch.zeros(len(requests)).long())
        starts = start_chains(requests, model, keys, options(start=start).start_options())
        groups = [r.space_group for r in requests]
        chains = Chains.start(model, starts, [g.number for g in groups], keys)
        first = chains.crystals.site_start
        places = [(b, w) for b, s in enumerate(starts) for w in s.positions or ()]
        assert len(places) == len(chains.frac)
        fixing = []
        for b, w in places:
            point = w.base + w.projector @ np.array([0.0127, 0.0211, 0.0173])
            moved = point @ np.swapaxes(groups[b].rotations, 1, 2) + groups[b].translations
            gap = moved - point
            fixing.append(np.flatnonzero(np.abs(gap - np.rint(gap)).max(1) < 1e-9))
            assert len(fixing[-1]) * w.multiplicity == groups[b].order
        steps = 0
        for _ in run(Ancestral(levels=4), chains):
            steps += 1
            for (b, _), own, x in zip(places, fixing, chains.frac.numpy(), strict=True):
                w, t = groups[b].rotations[own], groups[b].translations[own]
                gap = x @ np.swapaxes(w, 1, 2) + t - x
                assert np.abs(gap - np.rint(gap)).max() < 1e-9
            for b, group in enumerate(groups):
                fixed = ~lattice_freedom(group.number)
                fixed[:3] = False
                own = chains.coordinates[b].numpy()
                assert np.array_equal(own[fixed], fixed_coordinates(group.number)[fixed])
        assert steps == 4
        assert not chains.failed.any()
        assert int(first[-1]) == len(places)

    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 2), (7, 1)])
    def test_batches_change_nothing(
        self,
        proposing_model: CrystalModel,
        sampled: list[Candidate],
        batch_size: int,
        workers: int,
    ) -> None:
        again = draw(proposing_model, FORMULAS, batch_size=batch_size, workers=workers, attempts=4)
        assert same(sampled, again)

    def test_sites_too_do_not_depend_on_the_batch(self, proposing_model: CrystalModel) -> None:
        """Requests by sites and by formula, several proposals for each, mixed in one list."""
        requests = [*MIXED, *FORMULAS[::4]]
        one = draw(proposing_model, requests, batch_size=1, proposals=3)
        assert len(one) > 0.5 * len(requests)
        for batch_size in (7, 64):
            assert same(one, draw(proposing_model, requests, batch_size=batch_size, proposals=3))

    def test_proposals_matter(
        self, proposing_model: CrystalModel, sampled: list[Candidate]
    ) -> None:
        """From noise and at another temperature the same streams lead elsewhere."""
        found = {c.index: c for c in sampled}
        for changes in ({"start": "noise"}, {"proposal_temperature": 0.1}):
            other = draw(proposing_model, FORMULAS[:6], **changes)
            shared = [c for c in other if c.index in found]
            assert shared
            assert not any(np.array_equal(c.lattice, found[c.index].lattice) for c in shared)

    def test_positions_are_those_of_the_candidate(self, sampled: list[Candidate]) -> None:
        for c in sampled:
            number = c.space_group.number
            found = [locate(number, x, c.lattice).multiplicity for x in c.frac]
            assert found == c.multiplicity.tolist()


class TestDivergence:
    @pytest.mark.parametrize("column", [0, 1], ids=["positions", "lattice"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
    def test_one_sick_crystal_spoils_nothing(
        self, tiny_model: CrystalModel, mixed: list[Candidate], value: float, column: int
    ) -> None:
        sick = Poisoned(tiny_model.network, "K", value, column)
        model = dataclasses.replace(tiny_model, network=sick)
        outcomes = list(
            sample_batches(MIXED * 2, model, 3, options=options(batch_size=32, attempts=3))
        )
        kept = [c for o in outcomes for c in o.candidates]
        lost = [r for o in outcomes for r in o.rejections if r.reason.startswith("diverged")]
        assert sick.hits == 3 * QUICK.levels
        ill = {k for k, r in enumerate(MIXED * 2) if "K" in r.sites}
        assert {(r.index, r.attempt) for r in lost} >= {(i, a) for i in ill for a in range(3)}
        healthy = [c for c in mixed if c.index not in ill]
        found = {c.index: c for c in kept}
        assert not ill & set(found)
        assert healthy
        assert same(healthy, [found[c.index] for c in healthy])

    @pytest.mark.parametrize("column", [0, 1], ids=["positions", "lattice"])
    def test_sick_crystals_with_proposals(
        self, proposing_model: CrystalModel, column: int
    ) -> None:
        sick = Poisoned(proposing_model.network, "K", np.nan, column)
        model = dataclasses.replace(proposing_model, network=sick)
        asked = [MIXED[0], *FORMULAS[::5], lx.Request(62, formula="KCl")]
        requests = settled(asked, model)
        well = draw(proposing_model, requests, attempts=1)
        outcomes = list(sample_batches(requests, model, 3, options=options(attempts=1)))
        kept = [c for o in outcomes for c in o.candidates]
        lost = {r.index: r.reason for o in outcomes for r in o.rejections}
        assert {k for k, reason in lost.items() if reason.startswith("diverged")} >= {0, 5}
        assert same([c for c in well if c.index not in (0, 5)], kept)
        assert kept

    def test_a_single_bad_step_costs_one_attempt(
        self, tiny_model: CrystalModel, mixed: list[Candidate]
    ) -> None:
        class Once(Poisoned):
            def forward(self, g: GraphBatch, sigma_pos: Tensor, sigma_lat: Tensor) -> Tensor:
                bad = super().forward(g, sigma_pos, sigma_lat)
                return bad if self.hits == 2 else self.inner(g, sigma_pos, sigma_lat)

        sick = Once(tiny_model.network, "Na", np.nan, 0)
        model = dataclasses.replace(tiny_model, network=sick)
        found = {c.index: c for c in draw(model, MIXED, batch_size=32, attempts=4)}
        assert found[1].attempt >= 1
        assert np.isfinite(found[1].frac).all()
        healthy = [c for c in mixed if c.index < len(MIXED) and c.index != 1]
        assert same(healthy, [found[c.index] for c in healthy])

    def test_a_failed_chain_stays_put_and_others_move(self, tiny_model: CrystalModel) -> None:
        chains = self._chains(tiny_model)
        before, cells = chains.frac.clone(), chains.coordinates.clone()
        step = torch.full_like(chains.frac, 0.1)
        step[0, 1] = torch.nan
        chains.move_positions(step)
        sick = chains.site_crystal == 0
        assert chains.failed.tolist() == [True] + [False] * (N - 1)
        assert torch.equal(chains.frac[sick], before[sick])
        assert (chains.frac[~sick] != before[~sick]).any(1).all()
        chains.move_lattice(torch.full_like(cells, 0.2))
        moved = chains.coordinates > cells
        assert not moved[0].any()
        assert torch.equal(moved[1:, :3], torch.ones(N - 1, 3, dtype=torch.bool))
        assert torch.equal(moved[1:, 3:], chains.crystals.free[1:, 3:])
        assert chains.frac.isfinite().all()

    def test_lengths_stay_within_limits_and_a_limit_is_a_divergence(
        self, tiny_model: CrystalModel
    ) -> None:
        chains = self._chains(tiny_model)
        step = torch.zeros_like(chains.coordinates)
        step[2], step[3] = 95.0, -95.0
        chains.move_lattice(step)
        lengths = torch.linalg.vector_norm(chains.lattice, dim=2)
        assert not chains.failed.any()
        assert chains.diverged.tolist() == [k in (2, 3) for k in range(N)]
        torch.testing.assert_close(lengths[2], torch.full((3,), chain.LONGEST).double())
        torch.testing.assert_close(lengths[3], torch.full((3,), chain.SHORTEST).double())

    @pytest.mark.parametrize("sign", [-1.0, 1.0])
    def test_angles_stay_within_limits_too(self, tiny_model: CrystalModel, sign: float) -> None:
        chains = self._chains(tiny_model)
        before = chains.diverged[:-2].tolist()
        step = torch.zeros_like(chains.coordinates)
        step[:, 4] = 90.0 * sign  # β, which is free in the last two
        chains.move_lattice(step)
        assert not chains.failed.any()
        assert chains.diverged.tolist() == [*before, True, True]
        a, _, c = chains.lattice[-2]
        beta = torch.rad2deg(torch.arccos(a @ c / (a.norm() * c.norm())))
        assert float(beta) == pytest.approx(90 + (90 - chain.SHARPEST) * sign)

    def test_a_cell_too_dense_for_the_multigraph_fails_alone(
        self, tiny_model: CrystalModel
    ) -> None:
        requests = [MIXED[1], lx.Request(225, {"O": 60}), MIXED[2]]
        chains, alone = (chains_of(tiny_model, requests) for _ in range(2))
        smallest = torch.zeros_like(chains.coordinates)
        smallest[1] = -90.0
        chains.move_lattice(smallest)
        levels = torch.full((3,), 0.01).double(), torch.ones(3).double()
        noise, change = chains.noise(*levels)
        assert chains.failed.tolist() == [False, True, False]
        expected, wanted = alone.noise(*levels)
        healthy = chains.site_crystal != 1
        assert torch.equal(noise[healthy], expected[healthy])
        assert torch.equal(change[[0, 2]], wanted[[0, 2]])

    def _chains(self, model: CrystalModel) -> Chains:
        return chains_of(model, MIXED)


class TestSamplers:
    def test_langevin_runs_and_counts(self, tiny_model: CrystalModel) -> None:
        sampler = AnnealedLangevin(levels=3, steps=2)
        chains = chains_of(tiny_model, MIXED[:2], seed=1)
        before = chains.frac.clone()
        assert list(run(sampler, chains)) == [1, 2, 3]
        assert chains.evaluations == sampler.evaluations == 13
        assert chains.frac.isfinite().all()
        assert not torch.equal(chains.frac, before)

    def test_ancestral_counts(self, tiny_model: CrystalModel) -> None:
        chains = chains_of(tiny_model, MIXED[:2], seed=1)
        assert len(list(run(QUICK, chains))) == QUICK.levels
        assert chains.evaluations == QUICK.evaluations == QUICK.levels

    def test_langevin_does_not_depend_on_the_batch(self, tiny_model: CrystalModel) -> None:
        sampler = AnnealedLangevin(levels=2, steps=2)
        one = draw(tiny_model, MIXED, sampler=sampler, batch_size=1)
        assert one
        assert same(one, draw(tiny_model, MIXED, sampler=sampler, batch_size=8))

    def test_progress_ends_where_it_said(self, tiny_model: CrystalModel) -> None:
        seen: list[tuple[int, int]] = []
        lx.sample(
            MIXED,
            tiny_model,
            options=options(batch_size=3, attempts=1),
            progress=lambda done, planned: seen.append((done, planned)),
        )
        batches = -(-N // 3)
        assert seen[-1] == (batches * QUICK.levels, batches * QUICK.levels)
        assert [d for d, _ in seen] == sorted(d for d, _ in seen)

    def test_make_sampler(self) -> None:
        assert make_sampler("langevin", 4, 5) == AnnealedLangevin(levels=4, steps=5)
        assert make_sampler("ancestral", 4) == Ancestral(levels=4)
        assert make_sampler("ancestral") == Ancestral()
        with pytest.raises(InputError, match="one"):
            make_sampler("ancestral", 4, 5)
        with pytest.raises(InputError, match="ddim"):
            make_sampler("ddim")


class TestRefusals:
    def test_device(self, tiny_model: CrystalModel) -> None:
        with pytest.raises(InputError, match="tpu"):
            lx.sample(MIXED, tiny_model, device="tpu")

    @pytest.mark.parametrize("name", ["batch_size", "workers", "attempts", "proposals"])
    def test_options(self, name: str) -> None:
        with pytest.raises(InputError, match=name):
            SampleOptions(**{name: 0})

    @pytest.mark.parametrize(
        "name", ["assignment_temperature", "proposal_temperature", "proposal_noise"]
    )
    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
    def test_temperatures_and_noise(self, name: str, value: float) -> None:
        with pytest.raises(InputError, match=f"{name} is"):
            SampleOptions(**{name: value})

    @pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
    def test_distances(self, value: float) -> None:
        with pytest.raises(InputError, match="merge"):
            PostprocessConfig(merge=value)
        with pytest.raises(InputError, match="min_distance"):
            PostprocessConfig(min_distance=value)


class TestDrawnRequests:
    def test_counts_depend_on_seed_and_index_alone(self, tiny_model: CrystalModel) -> None:
        group = SpaceGroup(62)
        drawn = [draw_sites(("Cu", "O"), group, tiny_model.statistics, 1, k) for k in range(30)]
        again = [draw_sites(("Cu", "O"), group, tiny_model.statistics, 1, k) for k in range(30)]
        assert drawn == again
        assert len({tuple(r.sites.items()) for r in drawn}) > 2
        assert all(set(r.sites) == {"Cu", "O"} for r in drawn)

    def test_cells_stay_small(self, tiny_model: CrystalModel) -> None:
        group = SpaceGroup(227)
        per_site = tiny_model.statistics.site_multiplicity[227] / len(group.centring)
        for k in range(20):
            r = draw_sites(("Mg", "Al", "O", "S"), group, tiny_model.statistics, 0, k)
            total = len(r.numbers)
            assert total * per_site <= MAX_ATOMS or total == 4


def test_rejection_is_a_record() -> None:
    r = Rejection(MIXED[0], 3, 1, "overlap: Cu-Cu 0.10 Å, less than 0.7 Å")
    assert (r.index, r.attempt) == (3, 1)
    assert str(r.request) == "Cu:2,Si:1,K:1 in Pnma (62)"


class TestBatches:
    def test_parts_of_equal_sums_in_order(self) -> None:
        rng = np.random.default_rng(0)
        for parts in (1, 2, 5):
            sizes = rng.uniform(1, 20, 200).tolist()
            found = packed(sizes, parts, 1000)
            assert [k for part in found for k in part] == list(range(200))
            assert len(found) == parts
            for part in found:
                assert abs(sum(sizes[k] for k in part) - sum(sizes) / parts) <= max(sizes)

    def test_parts_hold_as_many_as_they_may(self) -> None:
        assert packed([1.0] * 7, 1, 3) == [[0, 1, 2], [3, 4, 5], [6]]
        assert packed([1.0] * 16, 2, 64) == [list(range(8)), list(range(8, 16))]
        assert packed([90.0, 1.0, 1.0], 2, 64) == [[0], [1, 2]]
        assert packed([5.0], 4, 64) == [[0]]
        assert packed([], 4, 64) == []

    def test_edges_are_about_as_many_as_expected(
        self, assigning_model: CrystalModel, reference: PackedDataset
    ) -> None:
        """Of the sites; of a formula, whose sites are not known yet, within a factor."""
        data = reference
        asked = requests_like(data, len(data))
        expected = np.array([expected_edges(r, assigning_model) for r in asked])
        config = assigning_model.network.config
        arrays = CrystalArrays.of_groups(data.lattice, data.frac, data.site_start, data.group)
        graph = build_multigraph(arrays, config.graph_settings(), threads=1)
        found = np.diff(graph.edge_start[data.site_start])
        assert 0.5 < found.sum() / expected.sum() < 2.0
        assert np.corrcoef(found, expected)[0, 1] > 0.8
        formulas = [
            (lx.Request(136, formula="TiO2"), 2), (lx.Request(225, formula="NaCl"), 2),
            (lx.Request(62, formula="Cu2KSi"), 4),
        ]  # fmt: skip
        for request, sites in formulas:
            reported = lx.Request(request.space_group, {"Na": sites})
            ratio = expected_edges(request, assigning_model) / expected_edges(
                reported, assigning_model
            )
            assert 0.3 < ratio < 3.0

    def test_batches_hold_a_bounded_number_of_edges(
        self, tiny_model: CrystalModel, mixed: list[Candidate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many chains may be in a batch; and the candidates are the same."""
        most = 2.5 * max(expected_edges(r, tiny_model) for r in MIXED)
        monkeypatch.setitem(batches_module.MOST_EDGES, "cpu", most)
        sizes = []
        start = Chains.start.__func__  # type: ignore[attr-defined]

        def counted(
            cls: type[Chains], model: CrystalModel, starts: list[Start], *rest: Any
        ) -> Any:
            sizes.append([len(s.numbers) for s in starts])
            return start(cls, model, starts, *rest)

        monkeypatch.setattr(Chains, "start", classmethod(counted))
        assert same(mixed, draw(tiny_model, MIXED * 2, batch_size=64))
        config = tiny_model.network.config
        edges = [sum(n * (config.k_max + EDGES_TO_ALL * n) for n in part) for part in sizes]
        assert max(edges) <= 1.5 * most
        assert len(sizes[0]) > 1


class TestTooLittleMemory:
    """A device that holds a few chains at a time; the error is the one CUDA raises."""

    @staticmethod
    def small_device(monkeypatch: pytest.MonkeyPatch, chains: int, after: int) -> list[int]:
        """Refuse larger batches in evaluation ``after``; the sizes of those that were tried."""
        tried: list[int] = []
        noise = Chains.noise

        def limited(self: Chains, *levels: Tensor) -> tuple[Tensor, Tensor]:
            if self.evaluations == after:
                tried.append(len(self.confined))
                if len(self.confined) > chains:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return noise(self, *levels)

        monkeypatch.setattr(Chains, "noise", limited)
        return tried

    @pytest.mark.parametrize("after", [0, 3])
    def test_batches_are_halved(
        self,
        tiny_model: CrystalModel,
        mixed: list[Candidate],
        monkeypatch: pytest.MonkeyPatch,
        after: int,
    ) -> None:
        tried = self.small_device(monkeypatch, 3, after)
        reported: list[tuple[int, int]] = []
        again = lx.sample(
            MIXED * 2,
            tiny_model,
            3,
            options=options(batch_size=32),
            progress=lambda done, planned: reported.append((done, planned)),
        )
        assert same(mixed, again)
        assert tried[:4] == [20, 10, 5, 2]
        assert all(done <= planned for done, planned in reported)
        assert reported[-1][0] == reported[-1][1]

    def test_one_chain_too_many(
        self, tiny_model: CrystalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.small_device(monkeypatch, 0, 0)
        with pytest.raises(SamplingError, match=r"too little memory .*Tried to allocate 2 GiB"):
            draw(tiny_model, MIXED[:2])


@pytest.mark.usefixtures("plain_path")
class TestHostWaits:
    """What would make a host wait for a GPU, counted on the CPU."""

    @pytest.mark.parametrize("sampler", [QUICK, AnnealedLangevin(levels=3, steps=2)])
    def test_steps_ask_for_nothing(
        self,
        assigning_model: CrystalModel,
        monkeypatch: pytest.MonkeyPatch,
        sampler: Ancestral | AnnealedLangevin,
    ) -> None:
        # in inference mode the counter sees compound operations whole
        monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
        chains = chains_of(assigning_model, MIXED, sampler=sampler)
        graph = chains._graph(chains.model.levels.grid(2, chains.tau)[0][0])
        monkeypatch.setattr(Chains, "_graph", lambda self, sigma: graph)
        going = run(sampler, chains)
        next(going)
        with HostWaits() as waits:
            next(going)
        assert waits.count == {}

    def test_the_layout_asks_once(
        self, assigning_model: CrystalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
        chains = chains_of(assigning_model, MIXED, positions="free")
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        genuine = noising.lay_out

        def kept(*arguments: Any, **named: Any) -> GraphBatch:
            given.append((arguments, named))
            return genuine(*arguments, **named)

        monkeypatch.setattr(noising, "lay_out", kept)
        found = chains._graph(torch.full((N,), 0.3, dtype=torch.float64))
        assert found.is_snap.any()
        ((arguments, named),) = given
        with HostWaits() as waits:
            genuine(*arguments, **named | {"messages": None})  # which a GPU does not have
        assert waits.count == {"tolist": 1}
