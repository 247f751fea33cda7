"""The learned ranking of Wyckoff assignments: laws of the scores, memory, fitting, files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model import ranking as module
from langevin_xtal.model.beam import likely_assignments
from langevin_xtal.model.memory import Memory, encode, mendeleev_order, remember, template_of
from langevin_xtal.model.prior import PriorConfig, WyckoffPrior
from langevin_xtal.model.ranking import (
    AssignmentRanker,
    RankerConfig,
    collate,
)
from langevin_xtal.model.tensor_file import write_tensors
from langevin_xtal.symmetry.assignments import Assignment, assignments
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.train.ranking import (
    RANKER_FORMAT,
    fit_ranker,
    labelled,
    load_ranker,
    save_ranker,
)

SMALL = RankerConfig(width=16, similarity=4)

ROCK_SALT = ((0,), (1,))
CRYSTALS: list[tuple[int, tuple[int, ...], Assignment]] = [
    (225, (11, 17), ROCK_SALT),
    (225, (12, 8), ROCK_SALT),
    (221, (38, 22, 8), ((0,), (1,), (2,))),
    (221, (20, 22, 8), ((0,), (1,), (2,))),
    (62, (29, 14), ((2, 3), (2,))),
]


@pytest.fixture(scope="module")
def ranker() -> AssignmentRanker:
    torch.manual_seed(3)
    made = AssignmentRanker(SMALL, remember(CRYSTALS)[0])
    with torch.no_grad():
        made.weigh.weight.fill_(0.5)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior() -> WyckoffPrior:
    torch.manual_seed(4)
    return WyckoffPrior(PriorConfig(width=32)).eval().requires_grad_(False)


class TestLaws:
    @given(
        number=st.sampled_from([2, 14, 62, 123, 139, 166, 194, 216, 221, 225]),
        elements=st.lists(st.integers(1, 100), min_size=1, max_size=3, unique=True),
        data=st.data(),
    )
    @settings(max_examples=40, deadline=None)
    def test_order_and_permutation_do_not_matter(self, ranker, number, elements, data):
        counts = [data.draw(st.sampled_from([1, 2, 4, 6, 8, 12])) for _ in elements]
        found = list(assignments(number, counts, limit=30))
        if not found:
            return
        computed = ranker.log_probabilities(number, elements, counts, found)
        assert np.exp(computed).sum() == pytest.approx(1.0)
        shuffle = data.draw(st.permutations(range(len(found))))
        again = ranker.log_probabilities(number, elements, counts, [found[k] for k in shuffle])
        np.testing.assert_allclose(again, computed[list(shuffle)], atol=1e-4)
        order = data.draw(st.permutations(range(len(elements))))
        turned = [tuple(a[k] for k in order) for a in found]
        row = position_permutations(number)[
            data.draw(st.integers(0, len(position_permutations(number)) - 1))
        ]
        turned = [tuple(tuple(sorted(int(row[w]) for w in e)) for e in a) for a in turned]
        again = ranker.log_probabilities(
            number, [elements[k] for k in order], [counts[k] for k in order], turned
        )
        np.testing.assert_allclose(again, computed, atol=1e-4)

    def test_repeats_exactly(self, ranker):
        found = list(assignments(123, [2, 4, 2]))
        computed = ranker.log_probabilities(123, [11, 8, 22], [2, 4, 2], found)
        ranker.log_probabilities(225, [11, 17], [4, 4], [ROCK_SALT])
        again = ranker.log_probabilities(123, [11, 8, 22], [2, 4, 2], found)
        assert (computed == again).all()

    def test_a_batch_gives_what_each_request_gives(self, ranker):
        parts = [
            encode(ranker.memory, 62, [29, 14], [12, 4], list(assignments(62, [12, 4]))),
            encode(ranker.memory, 221, [20, 22, 8], [1, 1, 3], list(assignments(221, [1, 1, 3]))),
            encode(ranker.memory, 1, [6], [3], [((0, 0, 0),)]),
        ]
        with torch.inference_mode():
            together = ranker.scores(collate(parts))
            alone = torch.cat([ranker.scores(collate([part])) for part in parts])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_the_best_share_anew_with_a_prior(self, ranker, prior, monkeypatch):
        """p(a)^1 prior(a)^w among the best, which keep what they have together; others keep p."""
        monkeypatch.setattr(module, "RESCORED", 5)
        found = list(assignments(123, [2, 4, 2]))
        asked = 123, [11, 8, 22], [2, 4, 2], found
        p = np.exp(ranker.log_probabilities(*asked))
        computed = np.exp(ranker.log_probabilities(*asked, prior))
        best = set(np.argsort(-p, kind="stable")[:5].tolist())
        weight = [
            p[k] * np.exp(prior.of_assignments(123, [11, 8, 22], [found[k]])[0]) ** 0.3
            for k in range(len(found))
        ]
        total, share = sum(p[k] for k in best), sum(weight[k] for k in best)
        assert len(found) > 10
        for k in range(len(found)):
            expected = total * weight[k] / share if k in best else p[k]
            assert computed[k] == pytest.approx(expected, rel=1e-6)
        assert computed.sum() == pytest.approx(1.0)
        assert np.abs(computed / p - 1).max() > 0.05
        shuffled = [found[k] for k in np.random.default_rng(0).permutation(len(found))]
        again = np.exp(ranker.log_probabilities(123, [11, 8, 22], [2, 4, 2], shuffled, prior))
        assert again == pytest.approx([computed[found.index(a)] for a in shuffled], rel=1e-4)

    def test_a_weight_of_zero_leaves_the_prior_out(self, ranker, prior):
        config = dataclasses.replace(SMALL, prior_weight=0.0)
        tensors = ranker.to_tensors()
        without = AssignmentRanker.from_tensors(config, tensors)
        asked = 123, [11, 8, 22], [2, 4, 2], list(assignments(123, [2, 4, 2]))
        computed = without.log_probabilities(*asked, prior)
        assert (computed == ranker.log_probabilities(*asked)).all()

    def test_nothing_to_rank(self, ranker):
        assert ranker.log_probabilities(62, [29], [6], []).shape == (0,)


class TestMemory:
    def test_templates_forget_elements_and_origin(self):
        one, roles = template_of(221, ((0,), (1,), (2,)))
        other, others = template_of(221, ((1,), (0,), (3,)))
        turned, back = template_of(221, ((3,), (1,), (0,)))
        assert one == other == turned
        assert roles == others
        assert back[2] == 0 or back[0] == 2

    def test_it_is_written_by_template(self):
        memory, rows = remember(CRYSTALS)
        assert Counter(memory.groups.tolist()) == {62: 1, 221: 1, 225: 1}
        for (number, elements, _), row in zip(CRYSTALS, rows, strict=True):
            assert memory.groups[memory.templates[row]] == number
            assert sorted(elements) == sorted(memory.elements[row][memory.elements[row] > 0])

    def test_likeness_against_loops(self, ranker):
        """Sum over crystals and matchings of exp(-distance of the elements), by hand."""
        memory = ranker.memory
        found = list(assignments(221, [1, 1, 3]))
        elements = [56, 22, 8]
        order = mendeleev_order(elements)
        assert order == [0, 1, 2]
        batch = collate([encode(memory, 221, elements, [1, 1, 3], found)])
        with torch.inference_mode():
            seen = ranker._recall(batch, None)
            apart = ranker.distances()
        for n, assignment in enumerate(found):
            template, roles = template_of(221, assignment)
            terms = []
            for number, theirs, placed in CRYSTALS:
                if number != 221 or template_of(221, placed)[0] != template:
                    continue
                other = template_of(221, placed)[1]
                terms.append(
                    sum(
                        float(apart[elements[a], theirs[b]])
                        for a, b in zip(roles, other, strict=True)
                    )
                )
            assert len(terms) == 2
            like = np.log(np.exp(-np.array(terms)).sum())
            assert float(seen[n, 0]) * 4 == pytest.approx(like, abs=1e-4)
            assert float(seen[n, 5]) * 4 == pytest.approx(-min(terms), abs=1e-4)

    def test_a_crystal_does_not_see_itself(self, ranker):
        found = list(assignments(62, [12, 4]))
        batch = collate([encode(ranker.memory, 62, [29, 14], [12, 4], found)])
        row = int(np.flatnonzero(ranker.memory.groups[ranker.memory.templates] == 62)[0])
        with torch.inference_mode():
            known = ranker._recall(batch, None)[:, 1]
            blind = ranker._recall(batch, torch.tensor([row]))[:, 1]
        assert known.sum() == 1
        assert known[found.index(((2, 3), (2,)))] == 1
        assert blind.sum() == 0

    def test_remembered_assignments_are_candidates_beyond_the_limit(self):
        crystal = (47, (39, 56, 29, 8), ((5,), (16,), (2, 13), (0, 8, 13, 19)))
        ranker = AssignmentRanker(SMALL, remember([crystal])[0])
        found, complete = ranker.candidates(47, [39, 56, 29, 8], [1, 2, 3, 7], limit=50)
        assert not complete
        memory = remember([crystal])[0]
        assert any(template_of(47, a)[0] == template_of(47, crystal[2])[0] for a in found)
        assert len(found) == len(set(found)) > 50
        assert memory.groups.tolist() == [47]

    def test_what_the_prior_finds_likely_is_a_candidate_beyond_the_limit(self, ranker, prior):
        asked = 47, [39, 56, 29, 8], [1, 2, 3, 7]
        found, complete = ranker.candidates(*asked, limit=50, prior=prior)
        likely = likely_assignments(prior, *asked)
        assert not complete
        assert len(found) == len(set(found))
        assert set(found) == {*likely, *assignments(47, asked[2], limit=50)}
        assert found == ranker.candidates(*asked, limit=50, prior=prior)[0]

    def test_all_are_candidates(self, ranker):
        found, complete = ranker.candidates(62, [29, 14], [12, 4])
        assert complete
        assert sorted(found) == sorted(assignments(62, [12, 4]))


class TestFitting:
    @pytest.fixture(scope="class")
    def data(self) -> PackedDataset:
        whole = reference_dataset()
        return whole.select(np.flatnonzero(np.isin(whole.group, [62, 139, 194, 221, 225])))

    def test_labels_are_among_the_assignments(self, data):
        for crystal in labelled(data):
            assert list(crystal.elements) == [
                crystal.elements[k] for k in mendeleev_order(crystal.elements)
            ]
            assert crystal.assignment in set(assignments(crystal.number, crystal.counts))

    def test_it_learns_and_repeats(self, data):
        def mean(ranker: AssignmentRanker) -> float:
            computed = []
            for c in labelled(data):
                found = list(assignments(c.number, c.counts, limit=2000))
                p = ranker.log_probabilities(c.number, c.elements, c.counts, found)
                computed.append(p[found.index(c.assignment)])
            return float(np.mean(computed))

        losses: list[tuple[int, float]] = []
        fitted = fit_ranker(data, epochs=2, config=SMALL, on_epoch=lambda *x: losses.append(x))
        again = fit_ranker(data, epochs=2, config=SMALL)
        assert [epoch for epoch, _ in losses] == [1, 2]
        for name, value in fitted.to_tensors().items():
            assert torch.equal(value, again.to_tensors()[name]), name
        torch.manual_seed(0)
        fresh = AssignmentRanker(SMALL, fitted.memory).eval()
        assert mean(fitted) > mean(fresh)


def roles(*of_positions: int) -> torch.Tensor:
    """Roles of the positions of the three templates that the crystals above have."""
    return torch.stack([torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), torch.tensor(of_positions)], 1)


class TestFiles:
    def test_what_the_roles_are(self, ranker):
        assert torch.equal(
            ranker.to_tensors()["memory.roles"], roles(0, 1, 1, 0, 1, 2, 0, 1).int()
        )

    def test_round_trip(self, ranker, tmp_path):
        path = tmp_path / "r.safetensors"
        save_ranker(path, ranker)
        read = load_ranker(path)
        assert read.config == SMALL
        found = list(assignments(62, [12, 4]))
        asked = 62, [29, 14], [12, 4], found
        assert (read.log_probabilities(*asked) == ranker.log_probabilities(*asked)).all()

    def test_the_usual_size_stays_small(self, tmp_path):
        path = tmp_path / "r.safetensors"
        save_ranker(path, AssignmentRanker(memory=remember(CRYSTALS)[0]))
        assert path.stat().st_size < 3 * 2**19

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("memory.groups", torch.tensor([62, 231, 225])),
            ("memory.positions", torch.full((8,), 200)),
            ("memory.templates", torch.tensor([0, 1, 2, 1, 0])),
            ("memory.elements", torch.full((5, 3), 119)),
            ("memory.elements", torch.zeros(4, 3, dtype=torch.int64)),
            ("weigh.weight", torch.zeros(2, 2)),
            ("unknown", torch.zeros(1)),
            ("memory.roles", None),
            ("memory.roles", roles(0, 2, 2, 0, 1, 2, 0, 1)),
            ("memory.roles", roles(1, 1, 1, 0, 1, 2, 0, 1)),
            ("memory.roles", torch.tensor([[1, 0]] * 8)),
        ],
    )
    def test_damaged_files_are_refused(self, ranker, tmp_path, name, value):
        tensors = ranker.to_tensors()
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
        path = Path(tmp_path / "r.safetensors")
        header = {"format": RANKER_FORMAT, "ranker": dataclasses.asdict(SMALL)}
        write_tensors(path, tensors, header)
        with pytest.raises(CheckpointError, match="does not fit its configuration"):
            load_ranker(path)

    def test_bad_configurations(self):
        with pytest.raises(InputError, match="width is 0"):
            RankerConfig(width=0)
        for weight in (-0.1, float("nan"), float("inf")):
            with pytest.raises(InputError, match="prior_weight is"):
                RankerConfig(prior_weight=weight)

    def test_files_without_a_weight_for_the_prior_have_the_usual_one(self, ranker, tmp_path):
        path = tmp_path / "r.safetensors"
        header = {"format": RANKER_FORMAT, "ranker": {"width": 16, "similarity": 4}}
        write_tensors(path, ranker.to_tensors(), header)
        assert load_ranker(path).config == SMALL
        computed = AssignmentRanker.from_tensors(
            dataclasses.replace(SMALL, prior_weight=0.7), ranker.to_tensors()
        )
        save_ranker(path, computed)
        assert load_ranker(path).config.prior_weight == 0.7

    def test_memories_are_checked(self):
        empty = remember([])[0]
        assert isinstance(empty, Memory)
        with pytest.raises(InputError, match="damaged"):
            dataclasses.replace(empty, groups=np.array([0]))
