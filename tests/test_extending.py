"""The newcomer's page: a sampler, a potential, an exporter and a stage, each of one file."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.sampling.samplers import SAMPLERS, make_sampler
from langevin_xtal.search.campaign import ranked_table
from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.stages import extra_facts
from langevin_xtal.search.work import ExtraStage

EXTENSIONS = Path(__file__).parents[1] / "examples" / "extensions"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(EXTENSIONS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two candidates of rock salt, by the sampler of the page."""
    out = tmp_path_factory.mktemp("extending") / "candidates"
    done = command(
        "-m", "langevin_xtal", "sample", "--formula", "MgO", "--z", "4", "--sg", "225",
        "--n", "2", "--sampler", "flow_sampler:Flow", "--levels", "5", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_a_sampler(candidates: Path) -> None:
    record = (candidates / "run.json").read_text()
    assert "Flow(levels=5)" in record
    with (candidates / "candidates.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["formula"] for row in rows] == ["MgO", "MgO"]
    assert len(list(candidates.glob("*.cif"))) == 2


def test_a_registered_sampler_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXTENSIONS)
    monkeypatch.setattr("langevin_xtal.sampling.samplers.SAMPLERS", dict(SAMPLERS))
    from flow_sampler import Flow  # type: ignore[import-not-found]

    assert make_sampler("flow_sampler:Flow", 7) == Flow(levels=7)
    assert Flow(levels=7).evaluations == 7


def test_the_flow_follows_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One exact step on a made-up network: from x̂ + σ ε the flow ends at x̂."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    import torch
    from flow_sampler import Flow

    class Chains:
        site_crystal = torch.tensor([0, 0])

        def __init__(self) -> None:
            self.eps = torch.tensor([[1.0, 0.0, 0.0], [0.0, -2.0, 0.5]])
            self.x, self.cell = 2.0 * self.eps, torch.tensor([[3.0, 3.0]])

        def noise(self, sigma, sigma_lattice):
            return self.x / sigma[0], self.cell / sigma_lattice[0]

        def move_positions(self, by):
            self.x = self.x + by

        def move_lattice(self, by):
            self.cell = self.cell + by

    chains, flow = Chains(), Flow(levels=4)
    schedule = (
        torch.tensor([[2.0], [1.0], [0.3], [0.1]]),
        torch.tensor([[3.0], [2.0], [1], [0.5]]),
    )
    for level in range(4):
        flow.step(chains, schedule, level)
        if level < 3:  # the noise that is left is that of the next level
            torch.testing.assert_close(chains.x, schedule[0][level + 1] * chains.eps)
    torch.testing.assert_close(chains.x, torch.zeros(2, 3))
    torch.testing.assert_close(chains.cell, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("ddim", "use ancestral or langevin, or 'module:attribute'"),
        ("no.such:thing", "cannot be imported"),
        ("math:pi", "not something that can be called"),
        ("builtins:dict", "no method step"),
        ("math:sqrt", "cannot be made"),
    ],
)
def test_what_is_no_sampler_is_refused(name: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        make_sampler(name)


def test_a_potential(candidates: Path, tmp_path: Path) -> None:
    out = tmp_path / "relaxed"
    done = command(
        "-m", "langevin_xtal", "relax", candidates, "--potential", "pair_potential:pairs",
        "--workers", "1", "--steps", "5", "--cache", tmp_path / "cache", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = "".join(p.read_text() for p in out.rglob("*") if p.suffix in (".csv", ".json"))
    assert "pair_potential:pairs" in text


def test_an_exporter(candidates: Path, tmp_path: Path) -> None:
    out = tmp_path / "aims"
    done = command(EXTENSIONS / "aims_exporter.py", "export", "aims", candidates, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "2 candidates" in done.stdout
    written = sorted(out.glob("*/geometry.in"))
    sources = sorted(candidates.glob("*.cif"))
    assert len(written) == 2
    volumes = sorted(ase.io.read(path, format="aims").get_volume() for path in written)
    expected = sorted(ase.io.read(path).get_volume() for path in sources)
    np.testing.assert_allclose(volumes, expected, rtol=1e-6)
    assert (out / "manifest.csv").exists()
    record = json.loads((written[0].parent / "export.json").read_text())
    assert record


def test_a_stage(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    line: tuple[str | Path, ...] = (
        "-m", "langevin_xtal", "search", "--elements", "Na,Cl", "--max-samples", "4",
        "--stage", "coordination_stage:coordination", "--out", store,
    )  # fmt: skip
    done = command(*line)
    assert done.returncode == 0, done.stderr
    entries = read_entries(store)
    assert entries
    for entry in entries:
        lattice, frac, numbers = entry.cell
        atoms = ase.Atoms(numbers=numbers, cell=lattice, scaled_positions=frac, pbc=True)
        distances = np.concatenate(
            [  # brute force over images
                np.linalg.norm((frac - x + np.array([i, j, k])) @ lattice, axis=1)
                for x in frac
                for i in range(-3, 4)
                for j in range(-3, 4)
                for k in range(-3, 4)
            ]
        )
        distances = distances[distances > 1e-6]
        near = (distances <= 1.2 * distances.min()).sum() / len(atoms)
        assert entry.properties["neighbours"] == pytest.approx(near)
    table = ranked_table(entries)
    assert table["neighbours"].tolist() == [e.properties["neighbours"] for e in entries]


@pytest.mark.parametrize(
    ("gives", "word"),
    [
        ({"energy": 1.0}, "a column of the search"),
        ({"angles": [90.0]}, "give a number, a truth value or a text"),
    ],
)
def test_what_no_stage_may_give(gives: dict[str, Any], word: str) -> None:
    extra = ExtraStage("mine:own", lambda cell: gives)
    with pytest.raises(InputError, match=word):
        extra_facts(extra, (np.eye(3), np.zeros((1, 3)), np.array([29])))


def test_a_stage_that_fails_is_named() -> None:
    extra = ExtraStage("mine:own", lambda cell: {"x": 1 / 0})
    with pytest.raises(LangevinXtalError, match="stage mine:own failed: ZeroDivisionError"):
        extra_facts(extra, (np.eye(3), np.zeros((1, 3)), np.array([29])))
