"""Structure types: the same crystal in any frame, a sound table, and starts from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from langevin_xtal import Request, load_model
from langevin_xtal.crystal.cell import expanded
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import CheckpointError
from langevin_xtal.evaluation.targets import ALL_GROUPS, Target, choose_targets
from langevin_xtal.model.checkpoint import CrystalModel, save_model
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.model.structure_types import (
    GRAIN,
    StructureTypes,
    TypesConfig,
    rounded,
    template_orders,
)
from langevin_xtal.sampling.known_types import (
    LEARNED,
    OpenCrystal,
    drawn_type,
    type_in_turn,
)
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.spread import settled
from langevin_xtal.symmetry.frames import frames
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from langevin_xtal.train.structure_types import structure_types


@pytest.fixture(scope="module")
def model() -> CrystalModel:
    return load_model("small")


@pytest.fixture(scope="module")
def types(reference: PackedDataset, model: CrystalModel) -> StructureTypes:
    return structure_types(reference, model.statistics, model.element_distances)


@pytest.fixture(scope="module")
def knowing(model: CrystalModel, types: StructureTypes) -> CrystalModel:
    """The shipped model with the types of the embedded structures alone."""
    return dataclasses.replace(model, name="knowing", types=types)


def of_target(target: Target) -> OpenCrystal:
    table = wyckoff_positions(target.group.number)
    sites = zip(target.numbers.tolist(), (table[w] for w in target.positions), strict=True)
    return OpenCrystal.of_sites(target.group.number, sites)


def test_every_crystal_is_found_again_in_the_table_of_its_own_dataset(
    reference: PackedDataset, knowing: CrystalModel
) -> None:
    matcher = StructureMatcher(ltol=0.3, stol=0.3, angle_tol=10)
    targets = choose_targets(reference, None, groups=ALL_GROUPS)
    assert len(targets) > 100
    missed = []
    for target in targets:
        crystal = of_target(target)
        found, shares = crystal.known(knowing)
        assert found, target.id
        assert shares.sum() <= 1 + 1e-9
        cells = []
        for one in found:
            draw = crystal.drawn(one, knowing)
            rows = cell_frame(torch.from_numpy(draw.coordinates).unsqueeze(0)).rows[0].numpy()
            numbers = np.array(crystal.numbers)
            cells.append(expanded(target.group, rows, draw.frac, numbers))
        truth = to_structure(target.cell())
        if not any(matcher.fit(to_structure(cell), truth) for cell in cells):
            missed.append(target.id)
    assert not missed


def test_types_hold_the_crystals_of_the_dataset(
    reference: PackedDataset, types: StructureTypes
) -> None:
    assert len(types.type) == len(reference)
    assert 0 < len(types) <= len(types.type)
    atoms = np.bincount(types.elements, minlength=119)
    kinds = np.zeros(119, dtype=int)
    for k in range(len(reference)):
        kinds[np.unique(reference.numbers[reference.sites_of(k)])] += 1
    np.testing.assert_array_equal(atoms, kinds)


@pytest.mark.parametrize("number", [1, 2, 12, 14, 62, 139, 166, 194, 216, 225, 227])
def test_templates_are_the_same_in_every_frame(number: int) -> None:
    rng = np.random.default_rng(number)
    names = frames(number).names
    count = len(wyckoff_positions(number))
    for _ in range(20):
        assignment = tuple(
            tuple(sorted(rng.integers(count, size=rng.integers(1, 4)).tolist())) for _ in range(3)
        )
        row = names[rng.integers(len(names))]
        order = rng.permutation(3).tolist()
        moved = tuple(tuple(sorted(int(row[w]) for w in assignment[k])) for k in order)
        template, orders = template_orders(number, assignment)
        other, turned = template_orders(number, moved)
        assert template == other
        assert {tuple(order[k] for k in one) for one in turned} == set(orders)


def test_roles_that_a_frame_exchanges_take_either_element() -> None:
    template, orders = template_orders(225, ((0,), (1,)))  # 4a and 4b: half a diagonal apart
    assert len(template) == 2
    assert sorted(orders) == [(0, 1), (1, 0)]


def test_likely_types_are_those_of_near_elements(
    types: StructureTypes, model: CrystalModel
) -> None:
    distances = model.element_distances
    for row in range(0, len(types), 7):
        elements, _ = types._crystals(row)
        found, novel = types.known(
            distances, int(types.group[row]), elements[0].tolist(), types._placed(row)
        )
        shares = [one.share for one in found]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) + novel == pytest.approx(1.0)
        assert row in [one.type for one in found]


def test_leaving_a_crystal_out_takes_its_own_weight_away(
    types: StructureTypes, model: CrystalModel
) -> None:
    widths = np.array([0.5, 2.0])
    first = np.searchsorted(types.type, np.arange(len(types) + 1))
    for crystal in range(0, len(types.type), 11):
        right, total = types.without(model.element_distances, crystal, widths)
        own = types.type[crystal]
        alone = first[own + 1] - first[own] == 1
        assert ((right == -1) == alone).all()
        assert alone or (right <= total + 1e-12).all()


def test_a_table_is_read_back_as_it_was_written(
    knowing: CrystalModel, types: StructureTypes, tmp_path: Path
) -> None:
    save_model(tmp_path / "m.safetensors", knowing)
    read = load_model(tmp_path / "m.safetensors")
    assert read.types is not None
    assert read.types.config == types.config
    for name, values in types.to_tensors().items():
        np.testing.assert_array_equal(read.types.to_tensors()[name], values)
    assert read.hash == knowing.hash
    assert read.settings_hash == knowing.settings_hash
    assert read.settings_hash != dataclasses.replace(knowing, types=None).settings_hash


@pytest.mark.parametrize("name", ["group", "sites", "role", "position", "type", "elements"])
@pytest.mark.parametrize("change", ["shorter", "larger", "first"])
def test_damaged_tables_are_refused(types: StructureTypes, name: str, change: str) -> None:
    tensors = types.to_tensors()
    values = tensors[name].long()
    if change == "shorter":
        values = values[:-1]
    elif change == "larger":
        values = values + 250
    else:
        wrong = 0 if name == "elements" else 77
        values = torch.cat([torch.tensor([wrong]), values[1:]])
    with pytest.raises(CheckpointError, match="structure types"):
        StructureTypes.from_tensors(types.config, tensors | {name: values})


def test_parameters_stay_in_their_interval() -> None:
    values = rounded(np.array([-0.02, 0.0, 0.5, 0.97999]))
    assert values.tolist() == [-20, 0, 500, 980]
    assert (values / GRAIN <= 0.98).all()


@pytest.mark.parametrize("field", ["width", "novelty"])
def test_configurations_out_of_bounds_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        TypesConfig(**{field: 1e9})


def test_turns_begin_with_the_likeliest_type_and_end_with_the_proposal(
    reference: PackedDataset, knowing: CrystalModel
) -> None:
    for target in choose_targets(reference, 20, groups=ALL_GROUPS):
        crystal = of_target(target)
        found, _ = crystal.known(knowing)
        first = type_in_turn(knowing, crystal, 0)
        assert first is not None
        np.testing.assert_array_equal(first.frac, crystal.drawn(found[0], knowing).frac)
        assert type_in_turn(knowing, crystal, 1) is None
        assert type_in_turn(knowing, crystal, 10_000) is None


def test_drawn_types_leave_their_share_to_the_proposal(
    reference: PackedDataset, knowing: CrystalModel
) -> None:
    crystal = of_target(choose_targets(reference, 1, groups=ALL_GROUPS)[0])
    rng = np.random.default_rng(0)
    for temperature, share in ((1.0, LEARNED), (0.1, 0.0)):
        none = [
            drawn_type(knowing, crystal, temperature, rng.random(2).tolist()) is None
            for _ in range(2000)
        ]
        assert np.mean(none) == pytest.approx(share, abs=0.04)


def test_samples_with_types_do_not_depend_on_their_company(knowing: CrystalModel) -> None:
    asked = [Request(225, formula="NaCl"), Request(227, {"Si": 1}), Request(formula="TiO2")] * 2
    requests = settled(asked, knowing, 3)

    def sampled(size: int, requests: list[Request]) -> dict[int, tuple[str, bytes]]:
        options = SampleOptions(batch_size=size, workers=1)
        return {
            c.index: (c.formula, np.round(c.lattice, 6).tobytes())
            for outcome in sample_batches(requests, knowing, 3, options=options)
            for c in outcome.candidates
        }

    together = sampled(64, requests)
    assert together == sampled(1, requests)
    assert together.items() >= sampled(64, requests[:3]).items()
