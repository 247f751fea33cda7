"""Trajectories: chains of candidates as they were, whatever the batches, workers and breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import ase.io
import numpy as np
import pytest

import langevin_xtal as lx
from langevin_xtal.cli import run
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.sampling import sample as sample_module
from langevin_xtal.sampling.batches import Outcome
from langevin_xtal.sampling.postprocess import PostprocessConfig, contains_group
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.samplers import Ancestral, AnnealedLangevin
from langevin_xtal.sampling.trajectory import Trajectory, TrajectoryFile

REQUESTS = [
    lx.Request("Fm-3m", {"Na": 1, "Cl": 1}),
    lx.Request(62, {"Cu": 1, "O": 1}),
    lx.Request(194, {"Zn": 1, "O": 1}),
    lx.Request("P-1", {"Li": 1, "F": 1}),
] * 2
LEVELS = 6


def sampled(
    model: CrystalModel, every: int | None = 1, **changes: object
) -> tuple[dict[int, lx.Candidate], dict[int, Trajectory]]:
    """Candidates and their chains by index."""
    settings: dict[str, object] = {
        "sampler": Ancestral(levels=LEVELS),
        "workers": 1,
        "postprocess": PostprocessConfig(min_distance=0.3),
        "attempts": 4,
    }
    options = SampleOptions(**(settings | changes))  # type: ignore[arg-type]
    outcomes = list(
        sample_batches(REQUESTS, model, 3, options=options, trajectory_every=every, device="cpu")
    )
    candidates = {c.index: c for o in outcomes for c in o.candidates}
    chains = {t.candidate.index: t for o in outcomes for t in o.trajectories}
    return candidates, chains


@pytest.fixture(scope="module")
def confined(assigning_model: CrystalModel) -> dict[int, Trajectory]:
    """Chains whose sites keep their Wyckoff positions."""
    return sampled(assigning_model)[1]


class TestChains:
    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (64, 1)])
    def test_they_change_nothing_and_nothing_changes_them(
        self,
        assigning_model: CrystalModel,
        confined: dict[int, Trajectory],
        batch_size: int,
        workers: int,
    ) -> None:
        plain, none = sampled(assigning_model, every=None)
        found, chains = sampled(assigning_model, batch_size=batch_size, workers=workers)
        assert not none
        assert len(plain) >= 5
        assert plain.keys() == found.keys() == chains.keys() == confined.keys()
        assert any(c.attempt > 0 for c in found.values())
        for k, c in plain.items():
            assert c.atom_frac.tobytes() == found[k].atom_frac.tobytes()
            assert c.lattice.tobytes() == found[k].lattice.tobytes()
            assert chains[k].candidate is found[k]
            assert chains[k].text() == confined[k].text()

    def test_they_end_in_the_candidate(self, confined: dict[int, Trajectory]) -> None:
        for chain in confined.values():
            c = chain.candidate
            np.testing.assert_array_equal(chain.lattice[-1], c.lattice)
            np.testing.assert_allclose(chain.positions[-1], c.atom_frac @ c.lattice, atol=1e-9)
            assert np.linalg.norm(chain.positions[0] - chain.positions[-1], axis=1).max() > 1e-4
            assert chain.level.tolist() == list(range(LEVELS + 1))

    def test_free_sites_end_near_it(self, tiny_model: CrystalModel) -> None:
        found, chains = sampled(tiny_model)
        merged = 0
        for k, chain in chains.items():
            c = found[k]
            assert chain.positions.shape == (LEVELS + 1, len(c.atom_site), 3)
            moved = np.linalg.norm(chain.positions[-1] - c.atom_frac @ c.lattice, axis=1)
            assert moved.max() <= 0.3 + 1e-9
            merged += moved.max() > 1e-6
        assert merged

    def test_every_frame_has_the_group(self, confined: dict[int, Trajectory]) -> None:
        tested = 0
        for chain in confined.values():
            c = chain.candidate
            for atoms in chain.atoms:
                near = atoms.get_all_distances(mic=True) + 10 * np.eye(len(atoms))
                if near.min() > 0.1:
                    frac = atoms.get_scaled_positions()
                    assert contains_group(atoms.cell.array, frac, atoms.numbers, c.space_group)
                    tested += 1
        assert tested > 20

    def test_atoms_do_not_jump(self, confined: dict[int, Trajectory]) -> None:
        left = 0
        for chain in confined.values():
            frac = chain.positions @ np.linalg.inv(chain.lattice)
            sites = np.unwrap(chain.site_frac, period=1.0, axis=0)
            step = np.abs(np.diff(sites, axis=0)).max()
            assert step <= 0.5
            # rows of operations have at most two entries
            assert np.abs(np.diff(frac, axis=0)).max() <= 2 * step + 1e-9
            left += bool(((frac < 0) | (frac >= 1)).any())
        assert left

    def test_noise_falls_from_where_the_chain_starts(
        self, assigning_model: CrystalModel, confined: dict[int, Trajectory]
    ) -> None:
        levels = assigning_model.levels
        for chain in confined.values():
            assert chain.sigma[0] == chain.sigma[1] == levels.position_max
            assert chain.sigma[-1] == pytest.approx(levels.position_min)
            assert chain.sigma_lattice[-1] == pytest.approx(levels.lattice_min)
            assert (np.diff(chain.sigma[1:]) < 0).all()

    @pytest.mark.parametrize(("every", "kept"), [(2, [0, 2, 4, 6]), (4, [0, 4, 6]), (9, [0, 6])])
    def test_some_levels(
        self,
        assigning_model: CrystalModel,
        confined: dict[int, Trajectory],
        every: int,
        kept: list[int],
    ) -> None:
        chains = sampled(assigning_model, every)[1]
        assert chains.keys() == confined.keys()
        for k, chain in chains.items():
            assert chain.level.tolist() == kept
            np.testing.assert_array_equal(chain.site_frac, confined[k].site_frac[kept])
            np.testing.assert_array_equal(chain.sigma, confined[k].sigma[kept])

    def test_langevin(self, assigning_model: CrystalModel) -> None:
        chains = sampled(assigning_model, sampler=AnnealedLangevin(levels=3, steps=2))[1]
        assert chains
        assert all(chain.level.tolist() == [0, 1, 2, 3] for chain in chains.values())

    def test_the_text_is_what_ase_reads(
        self, confined: dict[int, Trajectory], tmp_path: Path
    ) -> None:
        for k, chain in confined.items():
            path = tmp_path / f"{k}.extxyz"
            path.write_text(chain.text(), encoding="utf-8")
            frames = ase.io.read(path, ":")
            assert len(frames) == len(chain)
            for frame, atoms in zip(frames, chain.atoms, strict=True):
                assert frame.get_chemical_formula() == atoms.get_chemical_formula()
                assert frame.pbc.all()
                assert frame.info == atoms.info
                np.testing.assert_array_equal(frame.numbers, atoms.numbers)
                np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-8)
                np.testing.assert_allclose(frame.cell, atoms.cell, atol=1e-8)
            assert frames[0].info["candidate"] == k
            assert frames[0].info["request"] == str(REQUESTS[k])

    def test_how_often(self, tiny_model: CrystalModel) -> None:
        with pytest.raises(InputError, match="trajectory_every is 0"):
            list(sample_batches(REQUESTS, tiny_model, trajectory_every=0))


@pytest.fixture
def command(tiny_path: Path, tmp_path: Path) -> Callable[..., int]:
    """Sample eight rock salts into a folder; the exit code."""

    def go(out: str, *arguments: str) -> int:
        return run(
            ["sample", "--model", str(tiny_path), "--sites", "Na:1,Cl:1", "--sg", "225,221",
             "--levels", "4", "--threads", "1", "--min-distance", "0.05", "--n", "8",
             "--out", str(tmp_path / out), *arguments]
        )  # fmt: skip

    return go


class TestCommand:
    @pytest.fixture
    def whole(self, command: Callable[..., int], tmp_path: Path) -> bytes:
        """The file of a run without breaks."""
        path = tmp_path / "whole.extxyz"
        assert command("whole", "--trajectory", str(path)) == 0
        return path.read_bytes()

    def test_frames_in_the_order_of_candidates(self, whole: bytes, tmp_path: Path) -> None:
        frames = ase.io.read(tmp_path / "whole.extxyz", ":")
        index = [atoms.info["candidate"] for atoms in frames]
        assert index == sorted(index)
        assert len(frames) == 5 * len(set(index))
        files = sorted((tmp_path / "whole").glob("*.cif"))
        assert [int(path.name[:4]) for path in files] == sorted(set(index))
        assert not list((tmp_path / "whole").glob("*.parts"))
        for path, last in zip(files, frames[4::5], strict=True):
            assert ase.io.read(path).get_volume() == pytest.approx(last.get_volume(), rel=1e-4)

    def test_whatever_the_batches(
        self, command: Callable[..., int], whole: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "other.extxyz"
        assert command("other", "--trajectory", str(path), "--batch-size", "3") == 0
        assert path.read_bytes() == whole

    def test_candidates_that_were_there_before(
        self, command: Callable[..., int], whole: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "later.extxyz"
        assert command("later", "--n", "3") == 0
        before = {p.name: p.read_bytes() for p in (tmp_path / "later").glob("*.cif")}
        assert command("later", "--trajectory", str(path)) == 0
        assert path.read_bytes() == whole
        after = {p.name: p.read_bytes() for p in (tmp_path / "later").iterdir()}
        assert before.items() < after.items()
        assert after == {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}

    def test_interrupted_and_continued(
        self,
        command: Callable[..., int],
        whole: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path, genuine = tmp_path / "cut.extxyz", TrajectoryFile.add
        given = ("--trajectory", str(path), "--batch-size", "2")

        def interrupted(self: TrajectoryFile, chains: Iterable[Trajectory]) -> None:
            genuine(self, chains)
            if len(list(self.parts.iterdir())) >= 4:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(TrajectoryFile, "add", interrupted)
            assert command("cut", *given) == 130
        assert not path.exists()
        (parts,) = (tmp_path / "cut").glob("*.parts")
        kept = {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}
        assert len(kept) >= 4
        done = {int(p.name[:4]) for p in (tmp_path / "cut").glob("*.cif")}
        asked: list[int] = []

        def counted(*args: object, **kwargs: object) -> Iterable[Outcome]:
            asked.extend(kwargs["indices"])  # type: ignore[arg-type]
            return sample_batches(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(sample_module, "sample_batches", counted)
        assert command("cut", *given) == 0
        assert asked == [k for k in range(8) if k not in done]
        assert path.read_bytes() == whole

    def test_a_file_that_is_there(
        self,
        command: Callable[..., int],
        whole: bytes,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = tmp_path / "there.extxyz"
        path.write_text("mine")
        assert command("there", "--trajectory", str(path)) == 2
        assert "--force" in capsys.readouterr().err
        assert path.read_text() == "mine"
        assert not (tmp_path / "there").exists()
        assert command("there", "--trajectory", str(path), "--force") == 0
        assert path.read_bytes() == whole

    def test_inside_the_folder_of_the_run(
        self, command: Callable[..., int], whole: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "new" / "chains.extxyz"
        assert command("new", "--trajectory", str(path)) == 0
        assert path.read_bytes() == whole

    def test_fewer_frames(self, command: Callable[..., int], tmp_path: Path) -> None:
        path = tmp_path / "few.extxyz"
        assert command("few", "--trajectory", str(path), "--trajectory-every", "3") == 0
        frames = ase.io.read(path, ":3")
        assert [atoms.info["level"] for atoms in frames] == [0, 3, 4]

    @pytest.mark.parametrize(
        ("name", "words"), [(".", "is a folder"), ("none/chains.extxyz", "does not exist")]
    )
    def test_files_that_cannot_be(
        self,
        command: Callable[..., int],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        name: str,
        words: str,
    ) -> None:
        assert command("no", "--trajectory", str(tmp_path / name)) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "no").exists()
