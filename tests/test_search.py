"""Searching: what is asked for, what is kept, and that stopping and sharing change nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from math import comb, gcd
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from langevin_xtal.config.screening import FilterOptions, RelaxOptions, ReleaseOptions
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.crystal.pymatgen import plain_formula, to_structure
from langevin_xtal.crystal.request import Request, parse_formula
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.prepare import prepare
from langevin_xtal.errors import DataError, InputError, LangevinXtalError, RequestError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.groups import compact, parse_groups
from langevin_xtal.sampling.postprocess import PostprocessConfig
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.screen.changes import SWELLING
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.search import stages, work
from langevin_xtal.search.campaign import Campaign, ranked_table
from langevin_xtal.search.entries import rank_key, read_entries
from langevin_xtal.search.rows import to_json
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import Row, read_rows, read_summary
from langevin_xtal.symmetry.detection import group_number

FORK = hasattr(os, "fork")
needs_fork = pytest.mark.skipif(not FORK, reason="starts processes by fork")

ROCK_SALT: Cell = (
    np.eye(3) * 5.64,
    np.array(
        [
            *([0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]),
            *([0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]),
        ]
    ),
    np.array([11] * 4 + [17] * 4),
)


# -- a campaign that takes seconds


def tiny_campaign(
    store: str | Path, model: CrystalModel, reference: PackedDataset | None, **changes: Any
) -> Campaign:
    """Cu and Au with ASE's EMT: every stage but phonons."""
    settings: dict[str, Any] = {
        "max_samples": 14,
        "relax": True,
        "potential": "ase.calculators.emt:EMT",
        "relax_options": RelaxOptions(steps=2, fmax=0.5),
        "release_options": ReleaseOptions(more_steps=0, fmax=0.5),
        "filters": FilterOptions(min_distance=1.5, max_atoms=16),
        "sampling": SampleOptions(
            batch_size=4,
            attempts=2,
            sampler=Ancestral(levels=3),
            postprocess=PostprocessConfig(min_distance=0.3, merge=2.0),
        ),
        "reference": reference,
        "workers": 1,
        "seed": 5,
    }
    space = SearchSpace(["Cu", "Au"], [221, 123], max_sites=2)
    return Campaign(store, space, model, **(settings | changes))


def emt_hull(energy: float) -> HullReferences:
    """Cu and Au, both of that energy per atom."""
    name = "ase.calculators.emt:EMT"
    return HullReferences(("Cu1", "Au1"), np.array([energy] * 2), ("a", "b"), name, name)


def content(store: str | Path) -> list[str]:
    """All a campaign found, to the last bit."""
    return [json.dumps(to_json(row) | {"state": row.state}) for row in read_rows(store)]


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_model: CrystalModel, reference: PackedDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The store of a campaign that ran through."""
    path = tmp_path_factory.mktemp("campaign") / "whole.db"
    tiny_campaign(path, tiny_model, reference).run()
    return path


def forked(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    """A process of its own, which has imported everything already."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def count_calls(limit: int | None = None) -> list[int]:
    """Count calls in and from the search and ASE's database; kill this process at one of them.

    Most of them lie inside transactions, or between two.
    """
    calls = [0]
    places = (str(Path(stages.__file__).parent), str(Path(ase.db.__file__).parent))

    def look(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(places):
            calls[0] += 1
            if calls[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)
    return calls


def log_samples(path: Path) -> None:
    """Write every index that is sampled in this process to a file."""

    def logged(*arguments: Any, **options: Any) -> Any:
        with path.open("a") as stream:
            stream.writelines(f"{index}\n" for index in options["indices"])
        return sample_batches(*arguments, **options)

    stages.sample_batches = logged  # type: ignore[assignment]


def logged_samples(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


class TestCampaign:
    def test_every_stage_leaves_its_mark(self, uninterrupted: Path) -> None:
        rows = read_rows(uninterrupted)
        assert [row.index for row in rows] == list(range(14))
        states = Counter(row.state for row in rows)
        assert states["rejected"] >= 1
        assert states["duplicate"] >= 1
        assert states["ranked"] >= 3
        assert sum(states.values()) == 14
        for row in rows:
            if row.state == "rejected":
                assert row.facts["reason"]
            if row.state == "ranked":
                assert row.kept is not None
                assert row.facts["potential"] == "ase.calculators.emt:EMT"
                assert row.facts["hull_reason"] == "no hull references for ase.calculators.emt:EMT"
                assert "e_above_hull" not in row.facts
            assert row.provenance["seed"] == 5
            assert row.provenance["weights"]

    def test_candidates_given_up_and_filtered(
        self, tiny_model: CrystalModel, tmp_path: Path
    ) -> None:
        hopeless = SampleOptions(
            attempts=2, sampler=Ancestral(levels=3), postprocess=PostprocessConfig(min_distance=50)
        )
        campaign = tiny_campaign(tmp_path / "a.db", tiny_model, None, sampling=hopeless)
        summary = campaign.run()
        assert summary.states["rejected"] == 14
        assert all(row.cell is None for row in read_rows(tmp_path / "a.db"))
        (reason,) = {kind.partition(";")[0] for kind in summary.reasons}
        assert reason == "no candidate after … attempts"
        with pytest.raises(DataError, match="no candidate left: all of its 14"):
            campaign.best()
        strict = FilterOptions(min_distance=5.0)
        summary = tiny_campaign(tmp_path / "b.db", tiny_model, None, filters=strict).run()
        assert summary.states["rejected"] == 14
        stages_done = {stage.title: stage for stage in summary.stages}
        assert stages_done["filtered"].left == 0
        assert set(stages_done) == {"sampled", "filtered"}

    def test_known_crystals_are_marked(
        self, tiny_model: CrystalModel, uninterrupted: Path, tmp_path: Path
    ) -> None:
        chosen = read_entries(uninterrupted)[-1]
        (tmp_path / "cif").mkdir()
        assert chosen.sampled is not None
        to_structure(chosen.sampled).to(filename=str(tmp_path / "cif" / "4711.cif"))
        prepare(tmp_path / "cif", tmp_path / "known.lxd", workers=1)
        known = PackedDataset.load(tmp_path / "known.lxd")
        store = tmp_path / "s.db"
        tiny_campaign(store, tiny_model, known, relax=False).run()
        found = {row.uid: row.facts["known"] for row in read_rows(store) if "known" in row.facts}
        assert found[chosen.uid] == "4711"
        assert set(found.values()) == {"", "4711"}
        assert [row.state for row in read_rows(store) if row.uid == chosen.uid] == ["known"]
        (entry,) = [e for e in read_entries(store) if e.uid == chosen.uid]
        assert entry.properties["known"] == "4711"

    def test_what_relaxes_into_another_is_left_out(
        self, tiny_model: CrystalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # as relaxations into one crystal: everything relaxed is the same
        compare = stages.group_duplicates

        def all_the_same(cells: Any, **options: Any) -> list[int]:
            rounds.append(len(cells))
            return compare(cells, **options) if len(rounds) == 1 else [0] * len(cells)

        rounds: list[int] = []
        monkeypatch.setattr(stages, "group_duplicates", all_the_same)
        store = tmp_path / "s.db"
        summary = tiny_campaign(store, tiny_model, None).run()
        assert summary.states["ranked"] == 1
        rows = [row for row in read_rows(store) if "same_as" in row.facts]
        first = min(row.index for row in rows)
        assert len(rows) >= 3
        assert all(row.facts["same_as"] == (-1 if row.index == first else first) for row in rows)
        assert len(read_entries(store)) == 1

    def test_the_best_as_sampled_are_relaxed(
        self, tiny_model: CrystalModel, tmp_path: Path
    ) -> None:
        store = tmp_path / "s.db"
        summary = tiny_campaign(store, tiny_model, None, relax_best=3).run()
        rows = [row for row in read_rows(store) if row.facts.get("duplicate_of") == -1]
        energies = {row.index: row.facts["energy_sampled"] for row in rows}
        assert len(energies) >= 5
        lowest = sorted(energies, key=energies.__getitem__)
        assert {row.index for row in rows if row.kept is not None} == set(lowest[:3])
        assert {row.state for row in rows if row.kept is None} == {"unique"}
        assert "energies" in [stage.title for stage in summary.stages]
        found = [entry.energy is not None for entry in read_entries(store)]
        assert found == sorted(found, reverse=True)
        tiny_campaign(store, tiny_model, None, relax_best=5).run()
        rows = read_rows(store)
        assert {row.index for row in rows if row.kept is not None} == set(lowest[:5])
        assert all(rows[k].facts["energy_sampled"] == energies[k] for k in energies)

    @pytest.mark.parametrize(("deep", "within"), [(True, 0.1), (True, 50.0), (False, 0.0)])
    def test_released_near_the_hull(
        self, tiny_model: CrystalModel, tmp_path: Path, deep: bool, within: float
    ) -> None:
        """Everything lies far above a deep hull, and below a shallow one; some of it then far
        above the others."""
        store = tmp_path / "s.db"
        hull = emt_hull(-20.0 if deep else 50.0)
        tiny_campaign(store, tiny_model, None, hull=hull, release_within=within).run()
        ranked = [row for row in read_rows(store) if row.state == "ranked"]
        assert len(ranked) >= 3
        for row in ranked:
            above = row.facts["energy"] - hull.energy[0]
            assert row.facts["e_above_hull"] == pytest.approx(above, abs=1e-6)
            assert (row.facts["e_above_hull"] > 15) == deep
            assert ("energy_released" in row.facts) == (row.released is not None)
            assert ("note" in row.facts) == (row.facts["e_above_all"] <= within + 1e-6)

    def test_far_above_the_hull_relaxations_end_early(
        self, tiny_model: CrystalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All but those that may be among the best; said of each, counted, and never released."""
        monkeypatch.setattr(stages, "BEST", 1)
        steps = RelaxOptions(steps=20, fmax=0.05)
        given: dict[str, Any] = {"hull": emt_hull(-20.0), "relax_options": steps}
        whole = tmp_path / "whole.db"
        tiny_campaign(whole, tiny_model, None, relax_within=90.0, **given).run()
        store = tmp_path / "s.db"
        summary = tiny_campaign(store, tiny_model, None, relax_within=1.0, **given).run()
        before = {row.index: row for row in read_rows(whole)}
        rows = [row for row in read_rows(store) if "energy_kept" in row.facts]
        early = [row for row in rows if row.fact("ended_early")]
        later = [row for row in rows if row.fact("ended_early") is False]
        assert len(early) >= 2
        assert later
        for row in early:
            assert "relaxation ended early: it stays 1 eV/atom above the hull" in str(
                row.facts["warning"]
            )
            assert row.facts["energy_least"] <= row.facts["energy_ended"] - 0.1
            assert before[row.index].facts["energy_kept"] <= row.facts["energy_ended"] + 1e-3
            assert row.facts["energy_kept"] == row.facts["energy_ended"]
            assert "note" not in row.facts
        for row in later:
            assert "ended early" not in str(row.facts.get("warning", ""))
            assert row.facts["energy_kept"] <= row.facts["energy_ended"]
        (relaxed,) = [stage for stage in summary.stages if stage.title == "relaxed"]
        assert relaxed.remark == f"0 failed; {len(early)} ended early, far above the hull"
        best = min(rows, key=lambda row: row.facts.get("e_above_all", 99.0))
        assert not best.fact("ended_early")
        # whoever does the work, and whenever it stopped in between
        shared = tmp_path / "shared.db"
        tiny_campaign(shared, tiny_model, None, relax_within=1.0, workers=2, **given).run()
        assert content(shared) == content(store)
        again, done = tmp_path / "again.db", [0]
        keep = stages._finish

        def stop(*arguments: Any) -> None:
            done[0] += 1
            if done[0] == 1:
                raise KeyboardInterrupt
            keep(*arguments)

        monkeypatch.setattr(
            stages,
            "STAGES",
            tuple(
                dataclasses.replace(s, work=stop) if s.name == "finish" else s  # type: ignore[call-arg]
                for s in stages.STAGES
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            tiny_campaign(again, tiny_model, None, relax_within=1.0, **given).run()
        tiny_campaign(again, tiny_model, None, relax_within=1.0, **given).run()
        assert content(again) == content(store)

    def test_ranked_again_where_symmetry_broke_later(
        self, tiny_model: CrystalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run out of time ranks what is relaxed; the next one releases it."""
        from langevin_xtal.screen.relax import Relaxation
        from langevin_xtal.screen.release import perturbed

        def fall(cells: list[Cell], **options: Any) -> list[Relaxation]:
            if "progress" in options:  # hand the results over, as relaxations do
                keys = {cell_key(cell): np.zeros(1) for cell in cells}
                options["cache"].put("", keys)
            moved = [perturbed(cell, 0.3, 0) for cell in cells]
            return [Relaxation(cell, -9.0, -9.0, 1, True, 0.0, 0.0) for cell in moved]

        store, late = tmp_path / "s.db", [True]
        each = work.Stage._each

        def in_time(self: work.Stage, *arguments: Any) -> None:
            if self.name != "release" or not late[0]:
                each(self, *arguments)

        monkeypatch.setattr(stages, "relax_released", fall)
        monkeypatch.setattr(work.Stage, "_each", in_time)
        options: dict[str, Any] = {"hull": emt_hull(0.0), "release_within": 50.0}
        tiny_campaign(store, tiny_model, None, **options).run()
        first = {row.index: row for row in read_rows(store) if row.state == "ranked"}
        assert first
        assert all("symmetry_broke" not in row.facts for row in first.values())
        late[0] = False
        tiny_campaign(store, tiny_model, None, **options).run()
        rows = [row for row in read_rows(store) if row.state == "ranked"]
        assert rows
        for row in rows:
            assert row.facts["symmetry_broke"]
            assert row.facts["energy"] == row.facts["e_above_hull"] == -9.0
            assert first[row.index].facts["e_above_hull"] > -9

    def test_energies_are_those_of_the_stored_geometry(self, uninterrupted: Path) -> None:
        from ase import Atoms
        from ase.calculators.emt import EMT

        ranked = [row for row in read_rows(uninterrupted) if row.state == "ranked"]
        for row in ranked:
            assert row.cell is not None
            lattice, frac, numbers = row.cell
            atoms = Atoms(numbers=numbers, cell=lattice, scaled_positions=frac, pbc=True)
            atoms.calc = EMT()
            energy = atoms.get_potential_energy() / len(atoms)
            assert energy == pytest.approx(row.facts["energy"], abs=1e-6)

    def test_swelling_is_reported(self, uninterrupted: Path) -> None:
        """Where relaxation changed the volume much, in the table too."""
        rows = [row for row in read_rows(uninterrupted) if row.kept is not None]
        flagged = 0
        for row in rows:
            assert row.sampled is not None
            assert row.cell is not None
            before, after = (abs(np.linalg.det(c[0])) for c in (row.sampled, row.cell))
            reported = row.facts["warning"]
            assert bool(reported) == (abs(after / before - 1) > SWELLING)
            if reported:
                assert reported == f"volume {100 * (after / before - 1):+.0f} % in relaxation"
                flagged += 1
        assert flagged > 0
        table = ranked_table(read_entries(uninterrupted))
        assert table["flags"].str.contains("in relaxation").any()

    def test_duplicates_are_what_the_matcher_says(self, uninterrupted: Path) -> None:
        from pymatgen.analysis.structure_matcher import StructureMatcher

        matcher = StructureMatcher()
        rows = [row for row in read_rows(uninterrupted) if row.facts.get("filtered")]
        pairs = 0
        for row in rows:
            same = [
                other.index
                for other in rows[: rows.index(row)]
                if other.facts["duplicate_of"] == -1
                and matcher.fit(to_structure(row.sampled), to_structure(other.sampled))  # type: ignore[arg-type]
            ]
            if row.facts["duplicate_of"] == -1:
                assert not same
            else:
                pairs += 1
                assert row.facts["duplicate_of"] in same
        assert pairs

    def test_candidates_do_not_depend_on_the_campaign_around_them(
        self, tiny_model: CrystalModel, reference: PackedDataset, uninterrupted: Path
    ) -> None:
        campaign = tiny_campaign("unused.db", tiny_model, reference)
        plan = campaign.plan
        (outcome,) = sample_batches(
            [plan.request(k) for k in (6, 3)], tiny_model, 5, indices=[6, 3],
            options=SampleOptions(batch_size=64, workers=1, attempts=1,
                                  sampler=plan.sampling.sampler,
                                  postprocess=plan.sampling.postprocess),
        )  # fmt: skip
        rows = read_rows(uninterrupted)
        found = {c.index: c for c in outcome.candidates}
        assert found
        for index, candidate in found.items():
            sampled = rows[index].sampled
            assert sampled is not None
            assert np.array_equal(sampled[0], candidate.lattice)
            assert np.array_equal(sampled[1], candidate.atom_frac)
            assert rows[index].request == str(candidate.request) == str(plan.request(index))

    def test_running_again_changes_nothing(
        self,
        tiny_model: CrystalModel,
        reference: PackedDataset,
        uninterrupted: Path,
        tmp_path: Path,
    ) -> None:
        before = content(uninterrupted)
        titles: list[str] = []
        campaign = tiny_campaign(uninterrupted, tiny_model, reference)
        campaign.run(lambda title, done, planned: titles.append(title) if done < planned else None)
        assert content(uninterrupted) == before
        assert not {"sampling", "filtering", "relaxing", "ranking"} & set(titles)

    @pytest.mark.slow
    @needs_fork
    def test_killed_ten_times(
        self,
        tiny_model: CrystalModel,
        reference: PackedDataset,
        uninterrupted: Path,
        tmp_path: Path,
    ) -> None:
        rng = np.random.default_rng(11)
        store, log, length = tmp_path / "killed.db", tmp_path / "log", tmp_path / "length"

        def whole() -> None:
            campaign = tiny_campaign(tmp_path / "length.db", tiny_model, reference)
            calls = count_calls()
            campaign.run()
            sys.setprofile(None)
            length.write_text(str(calls[0]))

        process = forked(whole)
        process.join()
        assert process.exitcode == 0
        calls = int(length.read_text())

        def part(limit: int) -> None:
            campaign = tiny_campaign(store, tiny_model, reference)
            log_samples(log)
            count_calls(limit)
            campaign.run()

        kills = ends = 0
        while kills < 10:
            stored = [row.index for row in read_rows(store)] if finished_once(store) else []
            before = len(logged_samples(log))
            process = forked(lambda: part(int(rng.integers(1, calls // 2))))
            process.join()
            assert not set(logged_samples(log)[before:]) & set(stored)
            if process.exitcode == -signal.SIGKILL:
                kills += 1
            else:
                assert process.exitcode == 0
                ends += 1
                assert content(store) == content(uninterrupted)
                store.unlink()
        tiny_campaign(store, tiny_model, reference).run()
        assert content(store) == content(uninterrupted)

    @pytest.mark.parametrize("stage", ["sampling", "filtering", "relaxing"])
    def test_interrupted(
        self,
        tiny_model: CrystalModel,
        reference: PackedDataset,
        uninterrupted: Path,
        tmp_path: Path,
        stage: str,
    ) -> None:
        def press(title: str, done: int, planned: int) -> None:
            if title == stage and done > planned // 2:
                raise KeyboardInterrupt

        campaign = tiny_campaign(tmp_path / "s.db", tiny_model, reference)
        with pytest.raises(KeyboardInterrupt):
            campaign.run(press)
        campaign.run()
        assert content(tmp_path / "s.db") == content(uninterrupted)

    @needs_fork
    def test_two_processes_share_a_store(
        self,
        tiny_model: CrystalModel,
        reference: PackedDataset,
        uninterrupted: Path,
        tmp_path: Path,
    ) -> None:
        store = tmp_path / "shared.db"
        logs = [tmp_path / "first", tmp_path / "second"]

        def share(log: Path) -> None:
            log_samples(log)
            tiny_campaign(store, tiny_model, reference).run()

        processes = [forked(lambda log=log: share(log)) for log in logs]  # type: ignore[misc]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert content(store) == content(uninterrupted)
        sampled = [index for log in logs for index in logged_samples(log)]
        assert sorted(sampled) == list(range(14))

    def test_a_campaign_may_grow(
        self,
        tiny_model: CrystalModel,
        reference: PackedDataset,
        uninterrupted: Path,
        tmp_path: Path,
    ) -> None:
        store = tmp_path / "grown.db"
        tiny_campaign(store, tiny_model, None, relax=False, max_samples=5).run()
        assert {row.state for row in read_rows(store)} <= {"rejected", "unique", "duplicate"}
        assert len(read_rows(store)) == 5
        tiny_campaign(store, tiny_model, None, max_samples=9).run()
        tiny_campaign(store, tiny_model, reference).run()
        whole, grown = read_rows(uninterrupted), read_rows(store)
        assert [row.state for row in grown] == [row.state for row in whole]
        left = [row for row in grown if row.state == "ranked"]
        for row in left:
            one = whole[row.index]
            assert to_json(row)["kept"] == to_json(one)["kept"]
            assert row.facts["known"] == one.facts["known"]

    def test_no_time_left(
        self, tiny_model: CrystalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = itertools.count()
        monkeypatch.setattr(work.time, "monotonic", lambda: 600.0 * next(clock))
        summary = tiny_campaign(tmp_path / "s.db", tiny_model, None, max_hours=1.0).run()
        monkeypatch.undo()
        done = sum(summary.states.values())
        assert 0 < done < 14
        assert summary.states["sampled"] == summary.states["filtered"] == 0
        again = tiny_campaign(tmp_path / "s.db", tiny_model, None).run()
        assert sum(again.states.values()) == 14

    def test_another_campaign_is_refused(
        self, tiny_model: CrystalModel, reference: PackedDataset, uninterrupted: Path
    ) -> None:
        before = content(uninterrupted)
        for changes, name in (
            ({"seed": 6}, "seed is 5, not 6"),
            ({"filters": FilterOptions()}, "filters"),
            ({"relax_options": RelaxOptions(steps=9)}, "relax is"),
            ({"sampling": SampleOptions(attempts=3)}, "another campaign"),
        ):
            with pytest.raises(DataError, match=name):
                tiny_campaign(uninterrupted, tiny_model, reference, **changes).run()
        other = SearchSpace(["Cu", "Ag"], [221, 123], max_sites=2)
        with pytest.raises(DataError, match='elements is "Cu,Au", not "Cu,Ag"'):
            Campaign(uninterrupted, other, tiny_model).run()
        assert content(uninterrupted) == before

    def test_bad_options(self, tiny_model: CrystalModel, tmp_path: Path) -> None:
        space = SearchSpace(["Na", "Po"], [225])
        for options, message in (
            ({"samples_per_request": 0}, "samples_per_request is 0"),
            ({"max_samples": 0}, "max_samples is 0"),
            ({"max_hours": -1.0}, "max_hours is -1.0"),
            ({"phonons": 3}, "phonons need relaxed candidates"),
            ({"relax": True, "potential": "no.such:thing"}, "cannot be imported"),
            ({"reference": tmp_path / "none.lxd"}, "none.lxd"),
        ):
            with pytest.raises(InputError, match=message):
                Campaign(tmp_path / "s.db", space, tiny_model, **options)
        assert not (tmp_path / "s.db").exists()

    def test_elements_the_potential_does_not_know(
        self, tiny_model: CrystalModel, tmp_path: Path
    ) -> None:
        pytest.importorskip("chgnet")
        space = SearchSpace(["Na", "Po"], [225])
        with pytest.raises(InputError, match="chgnet does not know Po"):
            Campaign(tmp_path / "s.db", space, tiny_model, relax=True)

    def test_the_best(self, uninterrupted: Path, tiny_model: CrystalModel, reference: Any) -> None:
        campaign = tiny_campaign(uninterrupted, tiny_model, reference)
        table = campaign.best(3)
        assert list(table.index) == [1, 2, 3]
        assert list(table.energy) == sorted(table.energy)
        energies = [r.facts["energy"] for r in read_rows(uninterrupted) if r.state == "ranked"]
        assert list(table.energy) == sorted(energies)[:3]
        assert set(table.formula.map(lambda f: "Au" in f and "Cu" in f)) == {True}

    def test_summary_adds_up(self, uninterrupted: Path) -> None:
        summary = read_summary(uninterrupted)
        rows = read_rows(uninterrupted)
        assert sum(summary.states.values()) == len(rows)
        by_title = {stage.title: stage for stage in summary.stages}
        assert by_title["sampled"].done == 14
        assert by_title["filtered"].done == by_title["sampled"].left
        assert by_title["unique"].done == by_title["filtered"].left
        assert by_title["relaxed"].done == by_title["unique"].left
        assert by_title["ranked"].done == summary.states["ranked"]
        assert all(stage.seconds > 0 for stage in summary.stages)
        rejected = sum(row.state == "rejected" for row in rows)
        assert sum(summary.reasons.values()) == rejected

    def test_ase_reads_the_store(self, uninterrupted: Path) -> None:
        from ase.db import connect

        database = connect(uninterrupted)
        rows = read_rows(uninterrupted)
        for row in rows:
            (found,) = database.select(candidate=row.index)
            assert found.state == row.state
            if row.cell is not None:
                atoms = found.toatoms()
                assert atoms.cell.array == pytest.approx(row.cell[0])
                assert atoms.numbers.tolist() == row.cell[2].tolist()
            if "energy" in row.facts:
                assert found.energy == pytest.approx(row.facts["energy"] * found.natoms)
        assert database.count(state="ranked") == sum(row.state == "ranked" for row in rows)


def finished_once(store: Path) -> bool:
    """Whether the store has come as far as its settings."""
    from langevin_xtal.search.store import is_store

    return is_store(store)


# -- spaces


class TestSpace:
    def test_sites_by_hand(self) -> None:
        space = SearchSpace(["Cu", "Si"], [62, "Fm-3m"], max_sites=3)
        asked = [(r.space_group.number, dict(r.sites)) for r in space]
        counts = [{"Cu": 1, "Si": 1}, {"Cu": 2, "Si": 1}, {"Cu": 1, "Si": 2}]
        assert asked == [(group, sites) for group in (62, 225) for sites in counts]
        assert len(space) == 6

    @given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 5), st.integers(0, 2**31))
    def test_sites_against_brute_force(
        self, elements: int, extra: int, groups: int, seed: int
    ) -> None:
        names = ["Cu", "Si", "K", "O"][:elements]
        most = elements + extra
        space = SearchSpace(names, list(range(195, 195 + groups)), max_sites=most)
        ranges = [range(1, most + 1)] * elements
        brute = {c for c in itertools.product(*ranges) if sum(c) <= most}
        for group in space.groups:
            asked = [tuple(r.sites.values()) for r in space if r.space_group.number == group]
            assert len(asked) == len(brute)
            assert set(asked) == brute
            assert [sum(c) for c in asked] == sorted(sum(c) for c in asked)
        assert len(space) == len(list(space)) == groups * comb(most, elements)
        order = space.schedule(seed)
        assert sorted(order.tolist()) == list(range(len(space)))
        # any budget is spread evenly over groups
        for budget in (1, groups, len(space) // 2, len(space)):
            share = Counter(space[int(k)].space_group.number for k in order[:budget])
            counts = [share[g] for g in space.groups]
            assert max(counts) - min(counts) <= 1

    def test_the_schedule_depends_on_the_seed_alone(self) -> None:
        space = SearchSpace(["Cu", "Si"], "cubic", max_sites=3)
        assert np.array_equal(space.schedule(3), space.schedule(3))
        assert not np.array_equal(space.schedule(3), space.schedule(4))

    def test_formulas_by_hand(self) -> None:
        space = SearchSpace(formulas=["Cu2KSi"], space_groups=[62], z=[1, 4, 8])
        assert space.elements == ("Cu", "K", "Si")
        assert space._exact == [(62, "Cu2KSi", 4), (62, "Cu2KSi", 8)]
        assert len(space) == 2
        smallest = SearchSpace(formulas=["NaCl"], space_groups=[225, 221])
        assert smallest._exact == [(225, "NaCl", 4), (221, "NaCl", 1)]

    def test_requests_with_formulas(self) -> None:
        (request,) = SearchSpace(formulas=["NaCl"], space_groups=[225])
        assert (request.formula, request.z, request.space_group.number) == ("NaCl", 4, 225)

    @given(st.integers(1, 3), st.integers(0, 5))
    def test_all_formulas_against_brute_force(self, elements: int, extra: int) -> None:
        names = ["Cu", "Si", "K"][:elements]
        most = elements + extra
        space = SearchSpace(names, [1 + 220], formulas="all", max_formula_atoms=most, z=[192])
        ranges = [range(1, most + 1)] * elements
        brute = {c for c in itertools.product(*ranges) if sum(c) <= most and gcd(*c) == 1}
        assert space.formulas is not None
        found = {tuple(parse_formula(f)[s] for s in names) for f in space.formulas}
        assert found == brute
        assert len(space.formulas) == len(brute)

    def test_groups(self, tiny_model: CrystalModel) -> None:
        weights = tiny_model.statistics.group_weight
        common = SearchSpace(["Cu"], "common", model=tiny_model).groups
        assert len(common) == 32
        others = [n for n in range(1, 231) if n not in common]
        assert min(weights[list(common)]) >= max(weights[others])
        assert parse_groups("62,225-227") == (62, 225, 226, 227)
        assert parse_groups(["Pnma", 225]) == (62, 225)
        assert parse_groups("cubic,62,196") == (*range(195, 231), 62)
        assert parse_groups("all") == tuple(range(1, 231))

    @given(st.lists(st.integers(1, 230), min_size=1, max_size=40, unique=True))
    def test_compact_and_back(self, numbers: list[int]) -> None:
        assert list(parse_groups(compact(numbers))) == numbers

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"elements": None}, "no elements"),
            ({"elements": ["Xx"]}, "'Xx'"),
            ({"elements": ["Cu", "Cu"]}, "given twice"),
            ({"space_groups": 231}, "231 does not exist"),
            ({"space_groups": "70-62"}, "70-62 of space groups is empty"),
            ({"space_groups": ""}, "no space group"),
            ({"space_groups": "cubical"}, "'cubical' is not known"),
            ({"max_sites": 1}, "max_sites is 1, fewer than the 2 elements"),
            ({"max_sites": 1000}, "max_sites is 1000"),
            ({"z": 4}, "z is of use with --formula only"),
            ({"formulas": ["CuO"]}, "formula CuO and elements Cu,Si contradict"),
            ({"formulas": ["CuSi"], "max_sites": 3}, "contradict"),
            ({"formulas": ["CuSi"], "max_formula_atoms": 3}, "max_formula_atoms"),
            ({"formulas": ["cusi"]}, "'cusi' cannot be read"),
            ({"formulas": ["Cu0Si"]}, "0 Cu"),
            ({"formulas": ["CuSi"], "z": 0}, "z is 0"),
            ({"formulas": ["CuSi"], "z": [1], "space_groups": 62}, "does not fit Pnma"),
            ({"formulas": ["CuSi"], "z": [1], "space_groups": [62, 225]}, "none of 1 formulas"),
            ({"formulas": "all", "max_formula_atoms": 1}, "cannot hold 2 elements"),
            (
                {"elements": ["Cu", "Si", "O"], "max_sites": 64, "space_groups": "16-230"},
                "most is",
            ),
        ],
    )
    def test_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            SearchSpace(**({"elements": ["Cu", "Si"], "space_groups": [225]} | options))


# -- entries


def entry(uid: str, hull: float | None, energy: float | None) -> Entry:
    return Entry(uid, ROCK_SALT, "NaCl", 225, e_above_hull=hull, energy=energy)


class TestEntries:
    def test_order(self) -> None:
        entries = [
            entry("a", None, None),
            entry("b", None, -1.0),
            entry("c", 0.2, -3.0),
            entry("d", 0.1, -1.0),
            entry("e", 0.1, -2.0),
        ]
        assert [e.uid for e in sorted(entries, key=rank_key)] == ["e", "d", "c", "b", "a"]

    def test_cif_files(self, tmp_path: Path) -> None:
        structure = to_structure(ROCK_SALT)
        structure.to(filename=str(tmp_path / "a.cif"))
        (tmp_path / "sub").mkdir()
        structure.to(filename=str(tmp_path / "sub" / "b c.cif"))
        (tmp_path / "bad.cif").write_text("data_x\n_cell_length_a 3\n")
        rejects: dict[str, str] = {}
        entries = read_entries(tmp_path, rejects=rejects)
        assert [e.uid for e in entries] == ["a", "sub_b_c"]
        assert {e.formula for e in entries} == {"NaCl"}
        assert {e.space_group for e in entries} == {e.found_group for e in entries} == {225}
        assert rejects == {"bad": "the CIF holds no atoms"}
        assert len(read_entries(tmp_path, top=1)) == 1

    def test_energies_of_files_rank(self, tmp_path: Path) -> None:
        from ase import Atoms
        from ase.io import write

        lattice, frac, numbers = ROCK_SALT
        frames = []
        for hull in (0.3, 0.1):
            atoms = Atoms(numbers=numbers, cell=lattice, scaled_positions=frac, pbc=True)
            atoms.info = {"e_above_hull": hull, "energy_per_atom": -3.0}
            frames.append(atoms)
        write(tmp_path / "x.xyz", frames, format="extxyz")
        entries = read_entries(tmp_path / "x.xyz")
        assert [e.uid for e in entries] == ["x-1", "x-0"]
        assert [e.e_above_hull for e in entries] == [0.1, 0.3]
        assert entries[0].energy == -3.0

    def test_packed(self, reference: PackedDataset, tmp_path: Path) -> None:
        reference.save(tmp_path / "r.lxd")
        entries = read_entries(tmp_path / "r.lxd")
        assert len(entries) == len(reference)
        assert len({e.uid for e in entries}) == len(entries)
        for k, one in enumerate(entries):
            assert one.space_group == reference.group[k] == group_number(one.cell)
            assert len(one.cell[2]) == reference.atom_counts[k]

    @pytest.mark.parametrize("file_format", ["cif", "xyz", "poscar"])
    def test_sampled_folder(
        self, tiny_model: CrystalModel, tmp_path: Path, file_format: str
    ) -> None:
        from langevin_xtal.sampling.folder import CandidateFolder

        folder = CandidateFolder(tmp_path, {"seed": 3, "model": "tiny"}, file_format=file_format)
        options = SampleOptions(
            sampler=Ancestral(levels=3), workers=1, postprocess=PostprocessConfig(min_distance=0.1)
        )
        (outcome,) = list(
            sample_batches([Request(62, {"Cu": 1, "O": 1})] * 3, tiny_model, 3, options=options)
        )[:1]
        folder.add(outcome.candidates, [])
        assert outcome.candidates
        entries = {e.uid: e for e in read_entries(tmp_path)}
        assert len(entries) == len(outcome.candidates)
        for candidate in outcome.candidates:
            one = entries[f"{candidate.index:06d}"]
            assert one.space_group == 62
            assert sorted(one.cell[2]) == sorted(candidate.numbers[candidate.atom_site])
            assert one.cell[0] == pytest.approx(candidate.lattice, abs=1e-4)
            assert one.provenance["seed"] == 3
            assert one.provenance["request"] == str(candidate.request)

    def test_names_that_collide(self, tmp_path: Path) -> None:
        structure = to_structure(ROCK_SALT)
        for name in ("x y.cif", "x_y.cif", "X_Y.cif"):
            structure.to(filename=str(tmp_path / name))
        uids = [e.uid.lower() for e in read_entries(tmp_path)]
        assert sorted(uids) == ["x_y", "x_y-2", "x_y-3"]

    def test_of_a_store(self, uninterrupted: Path) -> None:
        entries = read_entries(uninterrupted)
        rows = {row.uid: row for row in read_rows(uninterrupted)}
        assert {e.uid for e in entries} == {u for u, r in rows.items() if r.state == "ranked"}
        for one in entries:
            row = rows[one.uid]
            assert one.energy == row.facts["energy"]
            assert one.sampled is not None
            assert one.properties["state"] == "ranked"
            assert one.provenance["request"] == row.request
            assert all(isinstance(v, (str, int, float, bool)) for v in one.properties.values())
        assert len(ranked_table(entries)) == len(entries)

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="best 0"):
            read_entries(tmp_path, top=0)
        with pytest.raises(DataError, match="does not exist"):
            read_entries(tmp_path / "no.db")
        (tmp_path / "bad.cif").write_text("data_x\n")
        with pytest.raises(DataError, match=r"no structure that can be used \(bad: the CIF"):
            read_entries(tmp_path)

    def test_formula(self) -> None:
        assert plain_formula([17, 11, 11, 17]) == "NaCl"
        assert plain_formula([29, 29, 19, 14]) == plain_formula([14, 19, 29, 29])


# -- the command


class TestCommand:
    def run(self, *arguments: str) -> tuple[Any, str]:
        from langevin_xtal.cli.search import search

        result = CliRunner().invoke(search, list(arguments))
        return result, result.output

    def test_search_and_again(self, tiny_path: Path, tmp_path: Path) -> None:
        arguments = (
            *("--elements", "Cu,Au", "--sg", "221,123", "--max-sites", "2", "--max-samples", "4"),
            *("--levels", "3", "--model", str(tiny_path), "--workers", "1"),
            *("--out", str(tmp_path / "s.db")),
        )
        result, text = self.run(*arguments)
        assert result.exception is None, text
        assert "Cu-Au: 2 requests in 2 space groups, 4 candidates" in text
        assert "sampled" in text
        before = content(tmp_path / "s.db")
        assert len(before) == 4
        result, again = self.run(*arguments)
        assert again.splitlines()[2:] == text.splitlines()[2:]
        assert content(tmp_path / "s.db") == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "give --elements"),
            (("--formula", "all"), "give --elements"),
            (("--elements", "Cu", "--z", "x"), "--z: 'x'"),
            (("--elements", "Cu", "--z", "4"), "--formula only"),
            (("--elements", "Cu", "--sg", "999"), "999 does not exist"),
            (("--elements", "Cu", "--model", "nope"), "neither shipped"),
            (("--elements", "Cu", "--formula", ","), "--formula is empty"),
            (("--elements", "Cu", "--sg", "225", "--phonons", "2"), "phonons need relaxed"),
        ],
    )
    def test_refused(self, arguments: tuple[str, ...], message: str) -> None:
        result, _ = self.run(*arguments)
        assert isinstance(result.exception, LangevinXtalError)
        assert message in str(result.exception)


def test_a_row_without_a_geometry() -> None:
    row = Row(3, "Cu:1 in Pm-3m (221)", 221, None, {"reason": "no candidate"})
    assert (row.uid, row.state, row.cell) == ("000003", "rejected", None)
    with pytest.raises(RequestError):
        parse_formula("")
