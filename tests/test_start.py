"""Requests and what their chains start from: formulas, cells and sites that are given."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.core import Composition, Lattice

import langevin_xtal as lx
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.request import MAX_ATOMS, StartingPoint, parse_formula
from langevin_xtal.errors import InputError, RequestError, SymmetryError
from langevin_xtal.model.beam import likely_assignments
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.proposal import Draw, Sites
from langevin_xtal.model.ranking import AssignmentRanker, RankerConfig
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.sampling.chain import LONGEST, Chains
from langevin_xtal.sampling.positions import MOST_ASSIGNMENTS, ranked_assignments
from langevin_xtal.sampling.postprocess import PostprocessConfig
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.sampling.start import (
    REDRAWS,
    USUAL_BETA,
    Start,
    expected_coordinates,
    start_chains,
)
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.symmetry import SpaceGroup, lattice_coordinates, lattice_freedom, orbit
from langevin_xtal.symmetry.assignments import Assignment, assignments
from langevin_xtal.symmetry.fitting import fits
from langevin_xtal.symmetry.lattice import fixed_coordinates
from langevin_xtal.symmetry.sites import wrap
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

CELLS = {
    1: (5.1, 6.2, 7.3, 81.0, 95.0, 103.0),
    2: (5.0, 5.0, 5.0, 60.0, 60.0, 60.0),
    5: (11.2, 4.1, 6.3, 90.0, 112.5, 90.0),
    14: (5.2, 5.3, 5.4, 90.0, 99.2, 90.0),
    62: (8.1, 6.2, 7.3, 90.0, 90.0, 90.0),
    139: (4.0, 4.0, 13.0, 90.0, 90.0, 90.0),
    148: (5.2, 5.2, 14.1, 90.0, 90.0, 120.0),
    194: (3.3, 3.3, 5.3, 90.0, 90.0, 120.0),
    225: (5.64, 5.64, 5.64, 90.0, 90.0, 90.0),
}
"""A cell of every crystal system."""


@pytest.fixture(scope="module")
def ranking_model(assigning_model: CrystalModel) -> CrystalModel:
    """A model with a prior and a ranker, both random."""
    torch.manual_seed(10)
    ranker = AssignmentRanker(RankerConfig(width=16, similarity=4)).eval().requires_grad_(False)
    return dataclasses.replace(assigning_model, ranker=ranker)


def options(**changes: object) -> SampleOptions:
    settings = {
        "sampler": Ancestral(levels=4),
        "workers": 1,
        "postprocess": PostprocessConfig(min_distance=0.02),
        "attempts": 4,
    }
    return SampleOptions(**(settings | changes))  # type: ignore[arg-type]


def keys_of(n: int, seed: int = 0) -> torch.Tensor:
    return stream_keys(seed, torch.arange(n), torch.zeros(n, dtype=torch.int64))


def ranked_by(
    model: CrystalModel,
    number: int,
    elements: tuple[int, ...],
    counts: tuple[int, ...],
    occupied: tuple[int, ...] = (),
) -> tuple[list[Assignment], NDArray[np.float64]] | None:
    return ranked_assignments(model.ranker, model.prior, number, elements, counts, occupied)


def started(
    model: CrystalModel, requests: Sequence[lx.Request], seed: int = 0, **changes: object
) -> list[Start]:
    chosen = options(**changes).start_options()
    return start_chains(requests, model, keys_of(len(requests), seed), chosen)


def sampled(
    model: CrystalModel, requests: Sequence[lx.Request], **changes: object
) -> list[Candidate]:
    return lx.sample(requests, model, 2, options=options(**changes))


def alike(one: Start, other: Start) -> bool:
    return (
        one.numbers == other.numbers
        and one.positions == other.positions
        and one.tau == other.tau
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("frac", "coordinates", "moves", "free")
        )
    )


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) > 20
    return text


class TestFormulas:
    @given(st.dictionaries(st.sampled_from(SYMBOLS[1:]), st.integers(1, 40), min_size=1))
    def test_parsing(self, counts: dict[str, int]) -> None:
        text = "".join(f"{s}{n if n > 1 else ''}" for s, n in counts.items())
        assert parse_formula(text) == counts
        assert list(parse_formula(text)) == list(counts)
        assert parse_formula(" ".join(f"{s}{n}" for s, n in counts.items())) == counts

    @pytest.mark.parametrize("text", ["Cu2KSi", "Cs2AgBiBr6", "CHHC3", "Fe12O18", "U"])
    def test_against_pymatgen(self, text: str) -> None:
        expected = Composition(text).get_el_amt_dict()
        assert parse_formula(text) == {s: int(n) for s, n in expected.items()}

    @pytest.mark.parametrize(
        "text",
        [
            *("", " ", "cu", "2Cu", "Cu2.5", "Cu-1", "Ca(OH2", "Cu2,K", "Cu_2", "Na+"),
            *("Ca(OH)2)", "Ca[OH)2", "()2", "Cu()", "xH2O", "CuSO4·", "·5H2O", "CuSO4·xH2O"),
            *("Cu2Xx", "Cu0", "Cu513", "J3", "cU", "Cu²", "None", "\n", "Cu" + "9" * 40),
        ],
    )
    def test_what_is_no_formula(self, text: str) -> None:
        with pytest.raises(RequestError) as error:
            parse_formula(text)
        sentence(error)

    @pytest.mark.parametrize(
        ("text", "counts"),
        [
            ("Al(OH)3", {"Al": 1, "O": 3, "H": 3}),
            ("K(CuSi)2", {"K": 1, "Cu": 2, "Si": 2}),
            ("CuSO4·5H2O", {"Cu": 1, "S": 1, "O": 9, "H": 10}),
            ("CuSO4.5H2O", {"Cu": 1, "S": 1, "O": 9, "H": 10}),
            ("CuSO4 * 5 H2O", {"Cu": 1, "S": 1, "O": 9, "H": 10}),
            ("CaSO4.H2O", {"Ca": 1, "S": 1, "O": 5, "H": 2}),
            ("MgO·Al2O3", {"Mg": 1, "O": 4, "Al": 2}),
            ("Cs₂AgBiBr₆", {"Cs": 2, "Ag": 1, "Bi": 1, "Br": 6}),
            ("[Co(NH3)6]Cl3", {"Co": 1, "N": 6, "H": 18, "Cl": 3}),
            ("K4[Fe(CN)6]·3H2O", {"K": 4, "Fe": 1, "C": 6, "N": 6, "H": 6, "O": 3}),
            ("Ca 10 (P O4)6 (O H)2", {"Ca": 10, "P": 6, "O": 26, "H": 2}),
            ("Fe0.5(Ni2)0.5O", None),
        ],
    )
    def test_as_people_write_them(self, text: str, counts: dict[str, int] | None) -> None:
        if counts is None:
            with pytest.raises(RequestError, match="FeNi2O2"):
                parse_formula(text)
        else:
            assert parse_formula(text) == counts

    @pytest.mark.parametrize(
        "text", ["Al2(SO4)3", "((Fe2)3O)2", "(NH4)2Ni(SO4)2(H2O)6", "[AlF6]Na3"]
    )
    def test_brackets_against_pymatgen(self, text: str) -> None:
        assert parse_formula(text) == Composition(text).get_el_amt_dict()

    @pytest.mark.parametrize(
        ("text", "whole"),
        [("Fe0.5Ni0.5", "FeNi"), ("Fe0.95O", "Fe19O20"), ("Li1.5Al0.5O2", "Li3AlO4")],
    )
    def test_fractions_say_which_whole_numbers_would_do(self, text: str, whole: str) -> None:
        with pytest.raises(RequestError, match="ordered") as error:
            parse_formula(text)
        assert str(error.value).endswith(f"such as {whole}")

    def test_very_many_digits(self) -> None:
        with pytest.raises(RequestError):
            parse_formula("Cu" + "1" * 5000)

    @given(st.text(max_size=12))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            counts = parse_formula(text)
        except RequestError as error:
            assert "\n" not in str(error) or "\n" in text
        else:
            assert counts
            assert all(n > 0 for n in counts.values())

    def test_formula_units(self) -> None:
        request = lx.Request(62, formula="Cu2KSi", z=4)
        assert request.counts == {"Cu": 8, "K": 4, "Si": 4}
        assert (request.elements, request.numbers) == (("Cu", "K", "Si"), ())
        assert str(request) == "Cu2KSi, Z = 4, in Pnma (62)"
        assert lx.Request(62, formula="Cu2KSi").z == 4
        assert lx.Request(1, formula="Cu2KSi").z == 1

    @pytest.mark.parametrize("number", range(1, 231))
    def test_the_smallest_number_of_units_fits(self, number: int) -> None:
        request = lx.Request(number, formula="SrTiO3")
        assert request.z is not None
        assert next(iter(assignments(number, list(request.counts.values()))))
        assert not any(fits(number, [z, z, 3 * z]) for z in range(1, request.z))
        if request.z > 1:
            with pytest.raises(RequestError, match="does not fit"):
                lx.Request(number, formula="SrTiO3", z=1)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"formula": "Cu3Si", "z": 2}, "does not fit Pnma"),
            ({"formula": "Cu3Si", "z": 0}, "z is 0; give"),
            ({"formula": "Cu3Si", "z": -4}, "z is -4; give"),
            ({"formula": "Cu3Si", "z": 1.0}, "z is 1.0; give"),
            ({"formula": "Cu3Si", "z": True}, "z is True; give"),
            ({"formula": "Cu3Si", "z": 400}, f"the most is {MAX_ATOMS}"),
            ({"formula": "Cu512O512"}, "Cu512O512"),
            ({"formula": "Cu", "sites": {"Cu": 1}}, "both sites and a formula"),
            ({"sites": {"Cu": 1}, "z": 4}, "give a formula with it"),
            ({}, "no sites were asked for"),
        ],
    )
    def test_refusals(self, arguments: dict[str, object], words: str) -> None:
        with pytest.raises(RequestError, match=words) as error:
            lx.Request(62, **arguments)  # type: ignore[arg-type]
        sentence(error)

    def test_what_would_fit_is_said(self) -> None:
        with pytest.raises(RequestError) as error:
            lx.Request(62, formula="Cu3Si", z=2)
        text = sentence(error)
        assert "Z = 4 (12 Cu and 4 Si)" in text
        assert "and Z = 2 in " in text


class TestSites:
    @pytest.mark.parametrize(
        ("sites", "word"),
        [
            ({}, "no sites"),
            ({"Cu": 0}, "Cu"),
            ({"Cu": -1}, "Cu"),
            ({"Cu": True}, "Cu"),
            ({"Cu": 1.0}, "Cu"),
            ({"cu": 1}, "did you mean Cu"),
            ({"Xx": 1}, "Xx"),
            ({"X": 1}, "X"),
            ({"Cu": 65}, "65"),
        ],
    )
    def test_refusals(self, sites: dict[str, int], word: str) -> None:
        with pytest.raises(RequestError, match=word) as error:
            lx.Request(62, sites)
        sentence(error)

    @pytest.mark.parametrize("group", [0, 231, -1, "Pnaq_", "", "999999999999"])
    def test_groups(self, group: int | str) -> None:
        with pytest.raises(SymmetryError) as error:
            lx.Request(group, {"Cu": 1})
        sentence(error)

    def test_given_positions(self, proposing_model: CrystalModel) -> None:
        request = lx.Request(225, {"Na": 1, "Cl": 1}, positions=[0, 1])
        for start in ("noise", "proposal"):
            (found,) = started(proposing_model, [request], start=start)
            assert found.positions is not None
            assert [w.multiplicity for w in found.positions] == [4, 4]
        (candidate,) = sampled(proposing_model, [request])
        assert candidate.multiplicity.tolist() == [4, 4]
        assert candidate.detected[1e-2] == 225

    @pytest.mark.parametrize(
        ("positions", "words"),
        [
            ([0], "1 positions were given for 2 sites"),
            ([0, 0], "is a point: it holds one site"),
            ([0, 12], "positions 0 to 11; 12 was given"),
            ([0, -1], "-1 was given"),
        ],
    )
    def test_positions_refused(self, positions: list[int], words: str) -> None:
        with pytest.raises(RequestError, match=words) as error:
            lx.Request(225, {"Na": 1, "Cl": 1}, positions=positions)
        sentence(error)

    def test_equal_requests(self) -> None:
        one, two = (lx.Request(62, {"Cu": 2}, lattice=(5, 6, 7)) for _ in range(2))
        assert one == two
        assert hash(one) == hash(two)
        assert one != lx.Request(62, {"Cu": 2}, lattice=(5, 6, 8))
        assert one != lx.Request(62, {"Cu": 2})


class TestStarts:
    @pytest.mark.parametrize("start", ["noise", "proposal"])
    def test_formulas_in_every_group(self, proposing_model: CrystalModel, start: str) -> None:
        """Atoms add up, points hold one site, sites are on their positions, cells obey."""
        requests = [lx.Request(n, formula="TiO2") for n in range(1, 231)]
        if start == "proposal":
            requests = requests[::5]
        for request, found in zip(
            requests, started(proposing_model, requests, start=start), strict=True
        ):
            number = request.space_group.number
            assert found.positions is not None
            counts: Counter[str] = Counter()
            for z, w in zip(found.numbers, found.positions, strict=True):
                counts[SYMBOLS[z]] += w.multiplicity
            assert counts == request.counts
            points = [w.index for w in found.positions if not w.freedom]
            assert len(points) == len(set(points))
            for w, x in zip(found.positions, found.frac, strict=True):
                off = (np.eye(3) - w.projector) @ (x - w.base)
                np.testing.assert_allclose(off, 0, atol=1e-6)
            assert found.moves.all()
            assert np.array_equal(found.free, lattice_freedom(number))
            assert np.isfinite(found.coordinates).all()
            fixed = ~found.free & (np.arange(6) > 2)
            assert np.array_equal(found.coordinates[fixed], fixed_coordinates(number)[fixed])

    @pytest.mark.parametrize("number", [1, 2, 5, 14, 62, 99, 139, 155, 166, 194, 205, 225])
    def test_expected_cells(self, tiny_model: CrystalModel, number: int) -> None:
        """Of the volume the atoms suggest, and of the group's shape."""
        statistics = tiny_model.statistics
        multiplicity = np.array([4.0, 8.0])
        coordinates = expected_coordinates(number, (22, 8), multiplicity, statistics)
        cell = Lattice(cell_frame(torch.from_numpy(coordinates)[None]).rows[0].numpy())
        volume = statistics.atomic_volume[[22, 8]] @ multiplicity
        assert 0.5 < cell.volume / volume < 1.5
        system = SpaceGroup(number).crystal_system
        gamma = 120.0 if system in ("trigonal", "hexagonal") else 90.0
        beta = USUAL_BETA if system == "monoclinic" else 90.0
        assert cell.angles == pytest.approx((90.0, beta, gamma))
        w, metric = SpaceGroup(number).rotations, cell.matrix @ cell.matrix.T
        turned = np.swapaxes(w, 1, 2) @ metric @ w
        np.testing.assert_allclose(turned, np.broadcast_to(metric, turned.shape), atol=1e-9)

    def test_noise_starts_are_uniform_on_their_positions(self, tiny_model: CrystalModel) -> None:
        """Along (x, 2x, z) too, where a projected unit cell would not be."""
        table = wyckoff_positions(194)
        where = next(w for w in table if w.freedom == 1 and len(set(w.directions[:, 0])) == 3)
        request = lx.Request(194, {"C": 1}, positions=[where.index])
        found = started(tiny_model, [request] * 2000, start="noise")
        x = np.sort(np.array([s.frac[0][where.parameters[0]] for s in found]) % 1.0)
        # Kolmogorov and Smirnov, at a probability of 1e-6
        gap = np.abs(x - (np.arange(2000) + 0.5) / 2000).max()
        assert gap < 2.7 / 2000**0.5

    @pytest.mark.parametrize("start", ["noise", "proposal"])
    def test_company_does_not_matter(self, proposing_model: CrystalModel, start: str) -> None:
        requests = [
            lx.Request(62, formula="Cu2KSi"),
            lx.Request(225, {"Na": 1, "Cl": 2}),
            lx.Request(14, formula="ZrO2"),
            lx.Request(1, {"Li": 3}),
            lx.Request(194, {"Zn": 1, "S": 1}, lattice=(3.8, 3.8, 6.2)),
        ]
        chosen = options(start=start, proposals=2).start_options()
        keys = keys_of(5, seed=3)
        together = start_chains(requests, proposing_model, keys, chosen)
        turned = start_chains(requests[::-1], proposing_model, keys.flip(0), chosen)[::-1]
        for k, request in enumerate(requests):
            (alone,) = start_chains([request], proposing_model, keys[k : k + 1], chosen)
            assert alike(alone, together[k])
            assert alike(alone, turned[k])
        other = start_chains(requests, proposing_model, keys_of(5, seed=4), chosen)
        assert not any(alike(a, b) for a, b in zip(together, other, strict=True))

    def test_where_on_the_schedule(self, proposing_model: CrystalModel) -> None:
        request, levels = lx.Request(62, formula="TiO2"), proposing_model.levels
        (noise,) = started(proposing_model, [request], start="noise")
        assert noise.tau == 0.0
        for sigma in (0.1, 0.4, 1.0):
            (found,) = started(proposing_model, [request], proposal_noise=sigma)
            assert levels.position_min < sigma < levels.position_max
            at = levels.position(torch.tensor(found.tau, dtype=torch.float64))
            assert float(at) == pytest.approx(sigma)

    def test_more_proposals_are_likelier(self, proposing_model: CrystalModel) -> None:
        from langevin_xtal.sampling import proposed as module

        seen: list[float] = []
        genuine = module.draw

        def spy(*args: object, **kwargs: object) -> object:
            found = genuine(*args, **kwargs)  # type: ignore[arg-type]
            seen.extend(one.log_likelihood for one in found)
            return found

        request = [lx.Request(99, {"Ti": 1, "O": 1}, positions=[0, 1])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "draw", spy)
            (best,) = started(proposing_model, request, proposals=6)
        assert len(seen) == 6
        (first,) = started(proposing_model, request, proposals=1)
        assert alike(best, first) == (seen.index(max(seen)) == 0)

    def test_each_attempt_is_at_a_higher_temperature(
        self, proposing_model: CrystalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is likeliest comes again and again, until it is drawn less coldly; 1 stays 1."""
        monkeypatch.setattr("langevin_xtal.sampling.start.REDRAWS", 1)
        keys = keys_of(8)
        requests = [lx.Request(62, {"Ti": 2, "O": 2}, positions=[2, 2, 2, 3])] * 8

        def different(temperature: float, attempt: int) -> int:
            chosen = options(proposal_temperature=temperature, assignment_temperature=temperature)
            starts = start_chains(
                requests, proposing_model, keys, chosen.start_options(), [attempt] * 8
            )
            return len({tuple(s.frac.round(6).flat) for s in starts})

        assert [different(1e-3, attempt) for attempt in (0, 12)] == [1, 8]
        assert different(1e-3, 1) <= different(1e-3, 4) <= different(1e-3, 8)
        chosen = options().start_options()
        first = start_chains(requests, proposing_model, keys, chosen)
        later = start_chains(requests, proposing_model, keys, chosen, list(range(8)))
        assert all(alike(a, b) for a, b in zip(first, later, strict=True))

    @pytest.mark.parametrize(
        ("lengths", "kept", "turns"),
        [
            ([5.6], 5.6, 1),
            ([2.0, 3.0, 5.6, 9.0], 5.6, 3),
            ([2.0, 3.0, *[2.5] * (REDRAWS - 2), 5.6], 3.0, REDRAWS),
        ],
        ids=["room enough", "drawn again", "never enough"],
    )
    def test_proposals_with_atoms_too_near_are_drawn_again(
        self,
        proposing_model: CrystalModel,
        monkeypatch: pytest.MonkeyPatch,
        lengths: list[float],
        kept: float,
        turns: int,
    ) -> None:
        """Rock salt with lengths [Å] for the proposals of a chain, beside one that needs one."""
        from langevin_xtal.sampling import proposed as module

        streams: list[torch.Tensor] = []
        used_temperatures: list[float] = []
        calls: list[int] = []
        later = itertools.chain(lengths, itertools.repeat(9.0))

        def proposed(_: object, __: object, asked: list[Sites], *others: torch.Tensor) -> object:
            calls.append(len(asked))
            rock_salt = [k for k, sites in enumerate(asked) if sites.group == 225]
            streams.extend(others[0][k] for k in rock_salt)
            used_temperatures.extend(float(others[2][k]) for k in rock_salt)
            lattices = [next(later) if sites.group == 225 else 6.0 for sites in asked]
            return [
                Draw(
                    np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]),
                    (0, 1),
                    lattice_coordinates(a * np.eye(3)),
                    0.0,
                )
                for a in lattices
            ]

        monkeypatch.setattr(module, "draw", proposed)
        asked = [lx.Request(g, {"Na": 1, "Cl": 1}, positions=[0, 1]) for g in (221, 225)]
        other, found = started(proposing_model, asked, proposal_temperature=0.1)
        assert cell_frame(torch.from_numpy(found.coordinates)[None]).rows[0, 0, 0] == (
            pytest.approx(kept)
        )
        # several turns at once; those after one with room are drawn in vain
        assert calls == {1: [2], 3: [2, 3], REDRAWS: [2, 3, REDRAWS - 4]}[turns]
        assert cell_frame(torch.from_numpy(other.coordinates)[None]).rows[0, 0, 0] == (
            pytest.approx(6.0)
        )
        # other numbers at every turn, at a higher temperature
        drawn = len(streams)
        assert drawn == sum(calls) - 1
        assert used_temperatures == pytest.approx(
            [0.1 ** (2 ** (-turn / 2)) for turn in range(drawn)]
        )
        assert len({float(u[0, 0]) for u in streams}) == drawn

    def test_starting_points(self, proposing_model: CrystalModel) -> None:
        lattice = np.diag([9.0, 8.0, 10.0])
        point = StartingPoint((2,), np.array([[0.1, 0.25, 0.2]]), lattice, 0.3)
        request = lx.Request(62, {"Cu": 1}, start=point)
        (found,) = started(proposing_model, [request])
        assert found.positions == (wyckoff_positions(62)[2],)
        assert np.array_equal(found.frac, point.frac)
        np.testing.assert_allclose(found.coordinates, lattice_coordinates(lattice), atol=1e-12)
        at = proposing_model.levels.position(torch.tensor(found.tau, dtype=torch.float64))
        assert float(at) == pytest.approx(0.3)

    def test_chains_begin_with_their_noise(self, tiny_model: CrystalModel) -> None:
        """Of the size of the level where they start, along the free directions alone."""
        lattice = np.diag([50.0, 40.0, 60.0])  # wide: no step wraps
        point = StartingPoint((2,), np.array([[0.5, 0.25, 0.5]]), lattice, 0.3)
        n = 1500
        requests = [lx.Request(62, {"Cu": 1}, start=point)] * n
        starts = started(tiny_model, requests)
        chains = Chains.start(tiny_model, starts, [62] * n, keys_of(n))
        moved = (chains.frac.numpy() - point.frac) * lattice.diagonal()
        # the cell moved as well, by some percent
        assert np.abs(moved[:, 1]).max() < 1e-9
        for k in (0, 2):
            assert moved[:, k].std() == pytest.approx(0.3, rel=0.1)
        change = (chains.coordinates - torch.from_numpy(starts[0].coordinates)).numpy()
        tau = torch.tensor(starts[0].tau, dtype=torch.float64)
        sigma = float(tiny_model.levels.lattice(tau))
        assert (change[:, 3:] == 0).all()
        assert change[:, :3].std(0) == pytest.approx(np.full(3, sigma), rel=0.1)


class TestAssignments:
    COUNTS = (4, 4, 12)  # Sr4 Ti4 O12
    ELEMENTS = (38, 22, 8)

    def test_ranked(self, tiny_model: CrystalModel) -> None:
        """All of them, likeliest first, with probabilities that add up."""
        ranked = ranked_by(tiny_model, 62, self.ELEMENTS, self.COUNTS)
        assert ranked is not None
        found, log_p = ranked
        assert sorted(found) == sorted(assignments(62, self.COUNTS))
        assert len(found) > 10
        assert (np.diff(log_p) <= 0).all()
        assert np.exp(log_p).sum() == pytest.approx(1.0)

    def test_ranker_and_prior_rank_together(self, ranking_model: CrystalModel) -> None:
        """Of a request with few assignments, and of one with more than are enumerated."""
        ranker, prior = ranking_model.ranker, ranking_model.prior
        assert ranker is not None
        assert prior is not None
        for number, elements, counts, cut in (
            (62, self.ELEMENTS, self.COUNTS, False),
            (47, (39, 56, 29, 8), (1, 2, 3, 7), True),
        ):
            ranked = ranked_by(ranking_model, number, elements, counts)
            assert ranked is not None
            found, log_p = ranked
            in_order = set(assignments(number, counts, limit=MOST_ASSIGNMENTS))
            likely = likely_assignments(prior, number, elements, counts)
            assert set(found) == (in_order | set(likely) if cut else in_order)
            assert (len(found) > len(in_order)) == cut
            assert (np.diff(log_p) <= 0).all()
            asked, _ = ranker.candidates(
                number, elements, counts, limit=MOST_ASSIGNMENTS, prior=prior
            )
            computed = ranker.log_probabilities(number, elements, counts, asked, prior)
            alone = ranker.log_probabilities(number, elements, counts, asked)
            place = [found.index(a) for a in asked]
            np.testing.assert_allclose(log_p[place], computed, atol=1e-9)
            assert np.abs(computed - alone).max() > 0.01

    def test_taken_positions_are_left_alone(self, tiny_model: CrystalModel) -> None:
        """Fixed sites fix the origin, so all assignments are listed, by trying all of them."""
        ranked = ranked_by(tiny_model, 62, self.ELEMENTS, self.COUNTS, (0,))
        assert ranked is not None
        table = wyckoff_positions(62)
        assert [(w.multiplicity, w.freedom) for w in table] == [(4, 0), (4, 0), (4, 2), (8, 3)]
        each = [
            [
                own
                for n in range(1, 4)
                for own in itertools.combinations_with_replacement((1, 2, 3), n)
                if sum(table[w].multiplicity for w in own) == count
            ]
            for count in self.COUNTS
        ]
        every = [
            option
            for option in itertools.product(*each)
            if sum(own.count(1) for own in option) <= 1
        ]
        assert sorted(ranked[0]) == sorted(every)

    def test_nothing_left_to_place(self, tiny_model: CrystalModel) -> None:
        ranked = ranked_by(tiny_model, 62, (38, 8), (0, 0))
        assert ranked is not None
        assert ranked[0] == [((), ())]
        assert ranked_by(tiny_model, 62, (38, 8), (-4, 4)) is None
        assert ranked_by(tiny_model, 62, (38, 8), (3, 4)) is None

    def test_elements_that_are_all_fixed_have_no_other_sites(
        self, tiny_model: CrystalModel
    ) -> None:
        ranked = ranked_by(tiny_model, 62, (38, 8), (0, 4))
        assert ranked is not None
        assert all(option[0] == () for option in ranked[0])
        assert [option[1] for option in ranked[0]] == [
            own
            for (own,) in ranked_by(tiny_model, 62, (8,), (4,))[0]  # type: ignore[index]
        ]

    @pytest.mark.parametrize("temperature", [1.0, 0.4])
    def test_draws_follow_the_probabilities(
        self, tiny_model: CrystalModel, temperature: float
    ) -> None:
        """Shares of p^(1/T), as the streams' numbers are uniform."""
        n = 1500
        request = lx.Request(139, formula="TiO2", z=2)
        ranked = ranked_by(tiny_model, 139, (22, 8), (2, 4))
        assert ranked is not None
        p = np.exp(ranked[1] / temperature)
        p /= p.sum()
        found = started(tiny_model, [request] * n, assignment_temperature=temperature)
        seen: Counter[object] = Counter()
        for s in found:
            assert s.positions is not None
            rows = list(zip(s.numbers, s.positions, strict=True))
            seen[tuple(tuple(w.index for z, w in rows if z == own) for own in (22, 8))] += 1
        assert set(seen) <= set(ranked[0])
        for option, expected in zip(ranked[0], p, strict=True):
            error = (expected * (1 - expected) / n) ** 0.5
            assert abs(seen[option] / n - expected) < 5 * error + 1e-3

    def test_cold_draws_are_the_likeliest(self, tiny_model: CrystalModel) -> None:
        """Without a ranker: those with the fewest sites."""
        requests = [lx.Request(62, formula="SrTiO3", z=4)] * 30
        found = started(tiny_model, requests, assignment_temperature=1e-3)
        fewest = min(sum(len(own) for own in a) for a in assignments(62, [4, 4, 12]))
        assert all(len(s.numbers) == fewest for s in found)


class TestGivenCells:
    @pytest.mark.parametrize("number", CELLS)
    def test_it_is_kept(self, proposing_model: CrystalModel, number: int) -> None:
        """Lengths and angles, from noise and from a proposal, to rounding."""
        cell = CELLS[number]
        requests = [
            lx.Request(number, {"Cu": 1, "O": 1}, lattice=cell),
            lx.Request(number, formula="CuO", lattice=cell),
        ]
        for start in ("noise", "proposal"):
            found = sampled(proposing_model, requests, start=start)
            assert found
            for c in found:
                assert c.structure.lattice.abc == pytest.approx(cell[:3], rel=1e-10)
                assert c.structure.lattice.angles == pytest.approx(cell[3:], abs=1e-7)
        for s in started(proposing_model, requests):
            assert not s.free.any()

    def test_three_lengths_where_angles_are_fixed(self) -> None:
        assert lx.Request(62, {"Cu": 1}, lattice=(4, 5, 6)).lattice == (4, 5, 6, 90, 90, 90)
        assert lx.Request(194, {"Cu": 1}, lattice=(4, 4, 6)).lattice == (4, 4, 6, 90, 90, 120)

    def test_long_cells_are_kept_too(self, tiny_model: CrystalModel) -> None:
        length = LONGEST + 5.0
        request = lx.Request(225, {"Cu": 2}, lattice=(length,) * 3)
        (found,) = sampled(tiny_model, [request])
        assert found.structure.lattice.a == pytest.approx(length)

    @pytest.mark.parametrize(
        ("number", "cell", "words"),
        [
            (225, (5, 5, 6), "does not fit the cubic group"),
            (225, (5, 5, 5, 90, 90, 91), "does not fit the cubic group"),
            (139, (4, 5, 6), "does not fit the tetragonal group"),
            (194, (4, 4, 6, 90, 90, 90), "does not fit the hexagonal group"),
            (148, (4, 4, 6, 90, 90, 90), "does not fit the trigonal group"),
            (62, (4, 5, 6, 90, 91, 90), "does not fit the orthorhombic group"),
            (14, (4, 5, 6, 91, 90, 90), "does not fit the monoclinic group"),
            (14, (4, 5, 6), "give its cell with angles"),
            (2, (4, 5, 6), "give its cell with angles"),
            (2, (4, 5, 6, 120, 120, 120), "make no cell"),
            (2, (4, 5, 6, 30, 40, 80), "make no cell"),
            (2, (4, 5, 6, 170, 100, 100), "make no cell"),
            (62, (4, 5), "cannot be used"),
            (62, (4, 5, 6, 90), "cannot be used"),
            (62, (), "cannot be used"),
            (62, (4, -5, 6), "cannot be used"),
            (62, (4, 0, 6), "cannot be used"),
            (62, (4, np.nan, 6), "cannot be used"),
            (62, (4, np.inf, 6), "cannot be used"),
        ],
    )
    def test_refusals(self, number: int, cell: tuple[float, ...], words: str) -> None:
        with pytest.raises(RequestError, match=words) as error:
            lx.Request(number, {"Cu": 1}, lattice=cell)
        sentence(error)


def site_at(candidate: Candidate, symbol: str, point: Sequence[float]) -> int:
    """The site of an element that holds this very point, to rounding."""
    gap = candidate.frac - np.array(point)
    near = np.abs(gap - np.rint(gap)).max(1) < 1e-12
    (site,) = np.flatnonzero(near & (candidate.numbers == atomic_number(symbol)))
    return int(site)


class TestFixedSites:
    GENERAL = (0.131, 0.082, 0.211)

    @pytest.mark.parametrize("start", ["noise", "proposal"])
    def test_they_are_kept_exactly(self, proposing_model: CrystalModel, start: str) -> None:
        """In requests by sites and by formula, special and general, several of one element."""
        origin = (0.0, 0.0, 0.0)
        requests = [
            lx.Request(62, {"Cu": 2, "O": 1}, fixed=[("Cu", self.GENERAL)]),
            lx.Request(62, formula="CuO2", z=4, fixed=[("Cu", origin)]),
            lx.Request(62, formula="CuO3", z=8, fixed=[("Cu", origin), ("O", self.GENERAL)]),
            lx.Request(14, formula="ZrO2", z=4, fixed=[("O", self.GENERAL)]),
            lx.Request(225, {"Na": 1, "Cl": 2}, fixed=[("Cl", (0.5, 0.5, 0.5))]),
            lx.Request(194, formula="ZnS", z=2, fixed=[("S", (1 / 3, 2 / 3, 0.25))]),
        ]
        found = sampled(proposing_model, requests * 2, start=start, attempts=8)
        assert {c.index % len(requests) for c in found} >= {0, 1, 3, 5}
        for c in found:
            for symbol, point in c.request.fixed:
                site_at(c, symbol, point)
            if c.request.formula is not None:
                assert Counter(c.atoms.get_chemical_symbols()) == c.request.counts

    def test_free_positions(self, tiny_model: CrystalModel) -> None:
        request = lx.Request(62, {"Cu": 1, "O": 2}, fixed=[("O", self.GENERAL)])
        found = sampled(tiny_model, [request] * 4, attempts=8)
        assert found
        for c in found:
            site_at(c, "O", self.GENERAL)

    def test_near_a_special_position_they_are_on_it(self, tiny_model: CrystalModel) -> None:
        """Within 0.1 Å, in a cell of 10 Å: rounded fractions such as 0.333 are meant exactly."""
        request = lx.Request(194, formula="ZnS", z=2, fixed=[("S", (0.3333, 0.6667, 0.25))])
        (start,) = started(tiny_model, [request])
        np.testing.assert_allclose(start.frac[0], [1 / 3, 2 / 3, 0.25], atol=1e-12)
        assert start.positions is not None
        assert start.positions[0].multiplicity == 2
        assert start.moves.tolist() == [False, True]

    def test_free_mode_keeps_sites_near_special_positions(self, tiny_model: CrystalModel) -> None:
        point = (0.131, 0.25 + 0.2 / 8, 0.211)  # 0.2 Å from a mirror plane
        request = lx.Request(62, {"Cu": 1}, fixed=[("Cu", point)], lattice=(9, 8, 10))
        (found,) = sampled(tiny_model, [request])
        site_at(found, "Cu", point)

    def test_points_that_are_taken_stay_free(self, tiny_model: CrystalModel) -> None:
        """No other site is put on a fixed point's position if that has no freedom."""
        request = lx.Request(225, formula="NaCl", z=4, fixed=[("Cl", (0, 0, 0))])
        for start in started(tiny_model, [request] * 20):
            assert start.positions is not None
            where = {
                SYMBOLS[z]: w.index for z, w in zip(start.numbers, start.positions, strict=True)
            }
            assert where == {"Cl": 0, "Na": 1}

    def test_too_many(self, proposing_model: CrystalModel) -> None:
        two = [("Cu", self.GENERAL), ("Cu", (0.3, 0.4, 0.1))]
        with pytest.raises(RequestError, match="1 Cu sites were asked for, and more are fixed"):
            started(proposing_model, [lx.Request(62, {"Cu": 1}, fixed=two)])
        with pytest.raises(RequestError, match="nothing fits beside the fixed sites") as error:
            started(proposing_model, [lx.Request(62, formula="CuO", z=4, fixed=two)])
        sentence(error)

    @pytest.mark.parametrize(
        ("fixed", "words"),
        [
            ([("Fe", (0, 0, 0))], "which the request does not have"),
            ([("Cu", (0, 0))], "is no position"),
            ([("Cu", (0, 0, np.nan))], "is no position"),
            ([("Cu", (0, 0, np.inf))], "is no position"),
            ([("Qq", (0, 0, 0))], "Qq"),
        ],
    )
    def test_refusals(self, fixed: list[tuple[str, tuple[float, ...]]], words: str) -> None:
        with pytest.raises(InputError, match=words) as error:
            lx.Request(62, {"Cu": 1}, fixed=fixed)
        sentence(error)

    def test_given_positions_fix_no_points(self) -> None:
        with pytest.raises(RequestError, match="fixed sites were given along with positions"):
            lx.Request(62, {"Cu": 1}, positions=[3], fixed=[("Cu", (0, 0, 0))])


def test_sick_proposals_cost_attempts_alone(proposing_model: CrystalModel) -> None:
    """Weights that are not numbers: chains are rejected, not the whole call."""
    assert proposing_model.proposal is not None
    from copy import deepcopy

    sick = deepcopy(proposing_model.proposal)
    sick.lattice[-1].bias.fill_(torch.nan)
    model = dataclasses.replace(proposing_model, proposal=sick)
    requests = [lx.Request(62, formula="TiO2"), lx.Request(225, {"Cu": 1})]
    assert lx.sample(requests, model, options=options(attempts=1)) == []


def test_orbits_of_fixed_points_in_any_image(tiny_model: CrystalModel) -> None:
    """Another image of a special point fixes the same atoms."""
    group = SpaceGroup(194)
    images = orbit(
        np.array([1 / 3, 2 / 3, 0.25]), group.rotations, group.translations, 10 * np.eye(3)
    )[0]
    assert len(images) == 2
    for image in images:
        request = lx.Request(194, formula="ZnS", z=2, fixed=[("S", tuple(wrap(image)))])
        (start,) = started(tiny_model, [request])
        assert start.positions is not None
        assert start.positions[0].multiplicity == 2
        np.testing.assert_allclose(wrap(start.frac[0]), wrap(image), atol=1e-12)
