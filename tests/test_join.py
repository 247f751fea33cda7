"""Joining and splitting packed datasets, and leaving out what a held-out set must not meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from langevin_xtal.cli.data import data as command
from langevin_xtal.dataset.join import NEAR_VOLUME, join, near_duplicates, split
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, InputError


@pytest.fixture(scope="module")
def crystals() -> PackedDataset:
    return reference_dataset()


def test_parts_come_back(crystals: PackedDataset) -> None:
    first, second = crystals.select(range(5)), crystals.select(range(5, 12))
    whole = join([first, second])
    assert whole == crystals.select(range(12))
    assert [p["data_hash"] for p in whole.meta["joined"]] == [
        first.content_hash,
        second.content_hash,
    ]


def test_properties_that_some_lack(crystals: PackedDataset) -> None:
    some = replace(crystals.select([0, 1]), properties={"gap": np.array([1.0, 2.0])})
    other = replace(crystals.select([2]), properties={})
    whole = join([some, other])
    assert whole.properties["gap"][:2].tolist() == [1.0, 2.0]
    assert np.isnan(whole.properties["gap"][2])


def test_nothing_to_join() -> None:
    with pytest.raises(DataError, match="at least one"):
        join([])


class TestNearDuplicates:
    def test_a_set_is_its_own_near_duplicate(self, crystals: PackedDataset) -> None:
        assert near_duplicates(crystals, crystals).all()

    def test_volume_decides(self, crystals: PackedDataset) -> None:
        one = crystals.select([0])
        for factor, expected in ((1 + 0.9 * NEAR_VOLUME, True), (1 + 1.5 * NEAR_VOLUME, False)):
            swollen = replace(one, lattice=one.lattice * factor ** (1 / 3))
            assert near_duplicates(swollen, one).tolist() == [expected]

    def test_another_element_is_no_near_duplicate(self, crystals: PackedDataset) -> None:
        one = crystals.select([0])
        other = replace(one, numbers=np.where(one.numbers == one.numbers[0], 118, one.numbers))
        assert not near_duplicates(other, one).any()


class TestSplit:
    def test_nothing_is_known_of_those_held_out(self, crystals: PackedDataset) -> None:
        twice = join([crystals, crystals])
        rest, others = split(twice, 20, seed=3)
        assert len(others) == 20
        assert not near_duplicates(rest, others).any()
        left = ~near_duplicates(crystals, others)
        assert sorted(rest.id.tolist()) == sorted(2 * crystals.id[left].tolist())
        assert split(twice, 20, seed=3)[1] == others
        assert split(twice, 20, seed=4)[1] != others

    def test_nothing_left(self, crystals: PackedDataset) -> None:
        for count, words in ((len(crystals), "give 1 to"), (0, "give 1 to")):
            with pytest.raises(DataError, match=words):
                split(crystals, count)
        one = crystals.select([0])
        with pytest.raises(DataError, match="larger dataset"):
            split(one, 1)
        with pytest.raises(DataError, match="hold out fewer"):
            split(join([one, one]), 1)

    def test_command(self, crystals: PackedDataset, tmp_path: Path) -> None:
        a, b, c = (tmp_path / f"{name}.lxd" for name in "abc")
        crystals.save(a)
        arguments = ["split", str(a), "--n", "10", "--held-out", str(b), "--out"]
        result = CliRunner().invoke(command, [*arguments, str(c)])
        assert result.exit_code == 0, result.output
        rest, others = PackedDataset.load(c), PackedDataset.load(b)
        left = len(crystals) - len(rest) - 10
        assert f"10 crystals in {b}, {len(rest)} in {c}; {left} near-duplicates" in result.output
        assert (rest, others) == split(crystals, 10)
        refused = CliRunner().invoke(command, [*arguments, str(a)])
        assert isinstance(refused.exception, InputError)
        assert PackedDataset.load(a) == crystals


def test_command(crystals: PackedDataset, tmp_path: Path) -> None:
    a, b, out = tmp_path / "a.lxd", tmp_path / "b.lxd", tmp_path / "all.lxd"
    crystals.select(range(6)).save(a)
    crystals.select(range(6, 10)).save(b)
    arguments = ["join", str(a), str(b), "--without", str(b), "--out", str(out)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert PackedDataset.load(out) == crystals.select(range(6))
    assert "6 crystals" in result.output
    assert "4 near-duplicates" in result.output
