"""Distributions over settings: neighbours, votes, exact support, files."""

from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.checkpoint import load_model, save_model
from langevin_xtal.model.known import (
    MOST_ELEMENTS,
    KnownCrystals,
    matches,
    nearest,
    ordered,
    reduced,
)
from langevin_xtal.model.settings import (
    MOST_UNITS,
    Composition,
    SettingConfig,
    SettingModel,
    group_mask,
    units_mask,
)
from langevin_xtal.model.voting import VotingConfig
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from langevin_xtal.train.parts import PartEpochs, fit_parts
from langevin_xtal.train.settings import fit_settings, known_crystals


@pytest.fixture(scope="module")
def model() -> SettingModel:
    ranker = load_model("small").ranker
    assert ranker is not None
    return fit_settings(reference_dataset(), ranker.resemblance().detach(), epochs=2)


def table(rows: list[tuple[dict[int, int], int]]) -> KnownCrystals:
    elements = np.zeros((len(rows), MOST_ELEMENTS), dtype=np.int64)
    counts = np.zeros_like(elements)
    for k, (atoms, _) in enumerate(rows):
        order = ordered(list(atoms), list(atoms.values()))
        elements[k, : len(order)] = np.array(list(atoms))[order]
        counts[k, : len(order)] = np.array(list(atoms.values()))[order]
    group = np.array([number for _, number in rows])
    return KnownCrystals(elements, counts, group, np.ones(len(rows), dtype=np.int64))


def test_compositions_are_reduced() -> None:
    assert reduced((4, 8, 2)) == ((2, 4, 1), 2)
    assert Composition.of({22: 2, 8: 4}) == Composition((22, 8), (1, 2))
    assert Composition((22, 8), (1, 2)).ordered([8, 22]) == Composition((8, 22), (2, 1))


def test_matches_keep_the_counts() -> None:
    counts = (1, 1, 2, 2, 2)
    found = matches(counts)
    assert len(found) == 2 * 6
    assert len({tuple(way) for way in found.tolist()}) == len(found)
    assert all([counts[k] for k in way] == list(counts) for way in found.tolist())


def test_nearest_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    place = rng.normal(size=(119, 3))
    distances = np.square(place[:, None] - place[None]).sum(2).astype(np.float32)
    rows = []
    for _ in range(60):
        a, b, c = (int(z) for z in rng.choice(np.arange(1, 100), 3, replace=False))
        units = int(rng.integers(1, 4))
        rows.append(({a: units, b: units, c: 3 * units}, 221))
    known = table(rows)
    asked = known.elements[:5, :3]
    found = nearest(known, distances, (1, 1, 3), asked, 4, without=np.arange(5))
    for k in range(5):
        apart = []
        for row in range(len(known)):
            theirs = known.elements[row, :3]
            ways = [(theirs[i], theirs[j], theirs[2]) for i, j in permutations((0, 1))]
            apart.append(min(sum(distances[q, z] for q, z in zip(asked[k], way, strict=True))
                             for way in ways))  # fmt: skip
        apart[k] = np.inf
        assert found.row[k].tolist() == np.argsort(apart, kind="stable")[:4].tolist()
        for row, matched in zip(found.row[k], found.matched[k], strict=True):
            way = sum(distances[q, z] for q, z in zip(asked[k], matched[:3], strict=True))
            assert_allclose(way, apart[row], rtol=1e-5)
            assert sorted(matched[:3]) == sorted(known.elements[row, :3])


def test_where_there_are_fewer_neighbours_the_rest_is_empty() -> None:
    known = table([({11: 1, 17: 1}, 225), ({3: 2, 9: 2}, 225)])
    distances = np.ones((119, 119), dtype=np.float32)
    found = nearest(known, distances, (1, 1), np.array([[19, 35]]), 5)
    assert found.row[0].tolist()[2:] == [-1, -1, -1]
    assert not nearest(known, distances, (1, 4), np.array([[19, 35]]), 3).matched.any()


def test_known_crystals_are_checked() -> None:
    sound = table([({11: 1, 17: 1}, 225)])
    for name, value in (
        ("group", np.array([231])),
        ("stable", np.array([2])),
        ("counts", np.zeros_like(sound.counts)),
    ):
        with pytest.raises(InputError, match="damaged"):
            dataclasses.replace(sound, **{name: value})


def test_all_crystals_of_the_dataset_are_known() -> None:
    data = reference_dataset()
    known, rows = known_crystals(data)
    assert len(known) == len(rows)
    for k in range(0, len(known), 7):
        sites = data.sites_of(rows[k])
        centring = len(SpaceGroup(int(known.group[k])).centring)
        atoms = int(data.multiplicity[sites].sum()) // centring
        assert known.counts[k].sum() == atoms
        assert set(known.elements[k]) - {0} == set(data.numbers[sites].tolist())


@pytest.mark.parametrize("counts", [(1, 1), (2, 4), (1, 3, 5), (7,), (2, 2, 2, 6)])
def test_the_mask_of_groups_is_what_multiplicities_allow(counts: tuple[int, ...]) -> None:
    mask = group_mask(counts)
    for number in range(1, 231):
        atoms = [n * len(SpaceGroup(number).centring) for n in counts]
        assert mask[number] == _placeable(number, atoms)


def _placeable(number: int, atoms: list[int]) -> bool:
    """Whether sums of multiplicities reach the atoms, positions without freedom used once."""
    positions = wyckoff_positions(number)
    single = [w.multiplicity for w in positions if not w.freedom]
    several = sorted({w.multiplicity for w in positions if w.freedom})
    reachable = [True] + [False] * max(atoms)
    for n in range(1, len(reachable)):
        reachable[n] = any(n >= m and reachable[n - m] for m in several)
    states = {tuple(atoms)}
    for m in single:
        for left in list(states):
            for k, n in enumerate(left):
                if n >= m:
                    states.add((*left[:k], n - m, *left[k + 1 :]))
    return any(all(reachable[n] for n in left) for left in states)


def test_cell_contents_are_bounded() -> None:
    assert np.flatnonzero(units_mask((1, 2))).tolist() == list(range(1, 35))
    assert np.flatnonzero(units_mask((100, 100))).tolist() == [1]


def test_probabilities_add_up_and_respect_the_mask(model: SettingModel) -> None:
    composition = Composition((22, 8), (1, 2))
    units = np.exp(model.log_units([composition])[0])
    assert_allclose(units.sum(), 1.0)
    assert len(units) == MOST_UNITS + 1
    assert not units[~units_mask(composition.counts)].any()
    groups = np.exp(model.log_groups([(composition, n) for n in (1, 2, 4)]))
    assert_allclose(groups.sum(1), 1.0)
    for n, row in zip((1, 2, 4), groups, strict=True):
        assert not row[~group_mask((n, 2 * n))].any()


def test_the_order_of_elements_does_not_matter(model: SettingModel) -> None:
    one, other = Composition((22, 8), (1, 2)), Composition((8, 22), (2, 1))
    assert_allclose(model.log_units([one])[0], model.log_units([other])[0])
    assert_allclose(model.log_groups([(one, 2)]), model.log_groups([(other, 2)]))


def test_cells_asked_together_or_alone_give_the_same(model: SettingModel) -> None:
    compositions = [Composition((22, 38, 8), counts) for counts in ((1, 1, 3), (2, 1, 4))]
    for log_p, asked in (
        (model.log_units, compositions),
        (model.log_groups, [(one, n) for one in compositions for n in (1, 2, 3)]),
    ):
        together = log_p(asked)
        assert len(together) == len(asked)
        for one, row in zip(asked, together, strict=True):
            assert_allclose(log_p([one])[0], row, atol=1e-5)


def test_known_settings_are_those_of_the_very_composition(model: SettingModel) -> None:
    found = model.known_settings(Composition((11, 17), (1, 1)))
    assert (1, 225) in found
    assert_allclose(sum(found.values()), 1.0)
    assert model.known_settings(Composition((11, 79), (7, 13))) == {}


def test_stoichiometries_of_a_system_add_up(model: SettingModel) -> None:
    found = model.compositions([38, 22, 8])
    assert found[0][0] == Composition((8, 22, 38), (3, 1, 1))
    assert_allclose(sum(share for _, share in found), 1.0)
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(InputError, match="12 elements"):
        model.compositions(range(1, 13))


def test_compositions_drawn_are_of_known_elements_and_repeat_with_the_seed(
    model: SettingModel,
) -> None:
    drawn = [model.draw_composition(np.random.default_rng(k)) for k in range(50)]
    assert drawn == [model.draw_composition(np.random.default_rng(k)) for k in range(50)]
    for composition in drawn:
        assert not model.unknown_elements(composition.elements)
        assert list(composition.elements) == sorted(set(composition.elements))
        assert min(composition.counts) >= 1
    assert model.unknown_elements([118]) == [118]


def test_exchanged_elements_stay_as_frequent_as_they_are(model: SettingModel) -> None:
    stable = model.known.elements[model.known.stable > 0]
    frequency = np.bincount(stable[stable > 0], minlength=119) / (stable > 0).sum()
    exchange = model._exchange
    assert_allclose(exchange.sum(1), 1.0)
    assert_allclose(frequency @ exchange, frequency, atol=1e-12)
    flow = frequency[:, None] * exchange
    assert_allclose(flow, flow.T, atol=1e-12)  # detailed balance
    assert np.diag(exchange)[frequency > 0].min() < 0.9  # something is exchanged


def test_a_model_file_keeps_the_settings(model: SettingModel, tmp_path) -> None:
    whole = dataclasses.replace(load_model("small"), settings=model)
    save_model(tmp_path / "m.safetensors", whole)
    again = load_model(tmp_path / "m.safetensors")
    assert again.hash == whole.hash == load_model("small").hash
    assert again.settings_hash == whole.settings_hash != load_model("small").settings_hash
    assert again.settings is not None
    composition = Composition((22, 8), (1, 2))
    assert_allclose(
        again.settings.log_groups([(composition, 2)]), model.log_groups([(composition, 2)])
    )


def test_damaged_tensors_are_refused(model: SettingModel) -> None:
    tensors = model.to_tensors()
    broken = tensors | {"known.group": torch.zeros_like(tensors["known.group"])}
    with pytest.raises(CheckpointError, match="damaged"):
        SettingModel.from_tensors(model.config, broken)
    with pytest.raises(CheckpointError, match="does not fit"):
        SettingModel.from_tensors(dataclasses.replace(model.config, width=32), tensors)


@pytest.mark.parametrize("change", [{"width": 4}, {"layers": 0}, {"heads": 5}])
def test_sizes_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(InputError):
        VotingConfig(**change)
    with pytest.raises(InputError):
        SettingConfig(neighbours=0)


def test_members_are_averaged(setting_model: SettingModel, reference: PackedDataset) -> None:
    config = setting_model.config
    other = fit_settings(reference, setting_model.resemblance, epochs=1, seed=5, config=config)
    both = SettingModel.of_members([setting_model, other])
    assert both.config == dataclasses.replace(config, members=2)
    composition = Composition.of({22: 1, 8: 2})
    for name, asked in (
        ("log_units", [composition]),
        ("log_groups", [(composition, 1), (composition, 2)]),
    ):
        each = [np.exp(getattr(m, name)(asked)) for m in (setting_model, other)]
        np.testing.assert_allclose(np.exp(getattr(both, name)(asked)), sum(each) / 2, atol=1e-12)
    read = SettingModel.from_tensors(both.config, both.to_tensors())
    asked = [composition]
    np.testing.assert_array_equal(read.log_units(asked), both.log_units(asked))
    for one, given in zip(both.singles(), (setting_model, other), strict=True):
        np.testing.assert_array_equal(one.log_units(asked), given.log_units(asked))
    with pytest.raises(InputError, match="single networks"):
        SettingModel.of_members([both, both])


def test_settings_gain_members_one_by_one(
    setting_model: SettingModel, reference: PackedDataset
) -> None:
    statistics = load_model("small").statistics
    epochs = PartEpochs(prior=0, ranker=0, settings=1, types=1, proposal=0, settings_members=2)
    given = {"ranker": load_model("small").ranker}
    parts = list(fit_parts(reference, statistics, epochs, {}, init=given))
    assert [name for name, _ in parts] == ["ranker", "settings", "settings", "types"]
    assert [part.config.members for name, part in parts if name == "settings"] == [1, 2]
    assert len(parts[-1][1].type) == len(reference)
    known = {"ranker": given["ranker"], "settings": parts[1][1]}
    more = list(fit_parts(reference, statistics, epochs, known, init=given))
    assert [name for name, _ in more] == ["settings", "types"]
    for name, values in parts[2][1].state_dict().items():
        assert torch.equal(values, more[0][1].state_dict()[name])
