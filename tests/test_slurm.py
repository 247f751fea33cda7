"""A campaign on a real SLURM and a real PostgreSQL, killed in the middle. LX_SLURM=1 runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from langevin_xtal.search.store import read_rows
from langevin_xtal.search.systems import Systems, load_systems, search_system
from tests.postgres import running_server

ROOT = Path(__file__).parents[1]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scancel", "squeue")
SYSTEMS = ["Na-Cl", "K-Br", "Mg-O", "Zn-S", "Cs-I", "Ca-F", "Al-N", "Ga-As", "Cu-Si-K", "Ba-Ti-O"]

pytestmark = pytest.mark.skipif(
    not os.environ.get("LX_SLURM") or not all(map(shutil.which, PROGRAMS)) or os.geteuid() != 0,
    reason="needs LX_SLURM=1, the programs of SLURM, and root",
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    script = [str(ROOT / "scripts" / "slurm_here.sh")]
    done = subprocess.run(
        [*script, "start", str(folder)], check=True, capture_output=True, text=True
    )
    os.environ["SLURM_CONF"] = done.stdout.split("=", 1)[1].strip()
    yield
    subprocess.run(["scancel", "--user=root"], check=False)
    subprocess.run([*script, "stop", str(folder)], check=True)
    del os.environ["SLURM_CONF"]


def written(folder: Path, store: str) -> Path:
    path = folder / "campaign.toml"
    systems = json.dumps(SYSTEMS)
    path.write_text(f'store = "{store}"\nsystems = {systems}\nsamples = 6\nseed = 5\n')
    cluster = f"""
        scheduler = "slurm"
        jobs = 2
        memory = "2GB"
        queue = "short"
        interface = "lo"
        prologue = ["cd {folder}", "export PATH={Path(sys.executable).parent}:$PATH"]
        log_folder = "{folder / "logs"}"
        """
    (folder / "slurm.toml").write_text(cluster)
    return path


def client(folder: Path) -> subprocess.Popen[str]:
    line = [
        *(sys.executable, "-m", "langevin_xtal", "campaign", "run", str(folder / "campaign.toml")),
        *("--engine", "dask", "--cluster", str(folder / "slurm.toml")),
    ]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition: object, seconds: float) -> None:
    begin = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - begin < seconds, "nothing happened"
        time.sleep(0.3)


def jobs() -> list[str]:
    found = subprocess.run(
        ["squeue", "-h", "-o", "%i", "-t", "R"], check=True, capture_output=True, text=True
    )
    return found.stdout.split()


def finished(systems: Systems) -> int:
    return sum(state.finished for state in systems.states())


def contents(systems: Systems) -> dict[str, list[object]]:
    return {
        name: sorted(
            (row.index, row.request, row.state, row.cell[0].tobytes() if row.cell else b"")
            for row in read_rows(systems.store_of(name))
        )
        for name in systems.names
    }


def test_worker_and_client_killed(slurm: None, tmp_path: Path) -> None:
    with running_server() as server:
        if server is None:
            pytest.skip("no PostgreSQL server can be had")
        systems = load_systems(written(tmp_path, server.database("campaign")))
        first = client(tmp_path)
        until(lambda: finished(systems) >= 1, 240)
        subprocess.run(["scancel", "-s", "KILL", "-f", jobs()[0]], check=True)
        until(lambda: finished(systems) >= 3, 240)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert finished(systems) < len(SYSTEMS)
        subprocess.run(["scancel", "--user=root"], check=True)  # nobody else would end them
        second = client(tmp_path)
        said, _ = second.communicate(timeout=600)
        assert second.returncode == 0, said
        assert f"{len(SYSTEMS)} of {len(SYSTEMS)} systems finished" in said
        until(lambda: not jobs(), 30)

        alone = Systems(str(tmp_path / "alone"), systems.options)
        for name in alone.names:
            assert not search_system(alone, name, 1).problem
        assert contents(systems) == contents(alone)


def test_job_array_without_a_client(slurm: None, tmp_path: Path) -> None:
    store = tmp_path / "stores"
    path = written(tmp_path, str(store))
    systems = load_systems(path)
    line = f"{sys.executable} -m langevin_xtal campaign run {path} --workers 1"
    subprocess.run(
        ["sbatch", "--array=0-1", f"--output={tmp_path}/array-%a.log", f"--wrap={line}"],
        check=True, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    until(lambda: finished(systems) == len(SYSTEMS), 600)
    until(lambda: not jobs(), 60)
    alone = Systems(str(tmp_path / "alone"), systems.options)
    for name in alone.names:
        assert not search_system(alone, name, 1).problem
    assert contents(systems) == contents(alone)
