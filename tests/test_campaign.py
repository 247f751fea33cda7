"""Campaigns of many systems, and work done by Dask."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from langevin_xtal.cli import run
from langevin_xtal.cluster import (
    ClusterConfig,
    _apply_checked,
    _gpu_jobs,
    difference,
    facts,
    load_cluster,
)
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.errors import InputError
from langevin_xtal.parallel import parallel_map, use_engine
from langevin_xtal.report.systems import _grid, draw_systems, map_cell
from langevin_xtal.search.store import Row, Store, read_finished, read_rows
from langevin_xtal.search.systems import (
    Outcome,
    SystemOptions,
    Systems,
    load_systems,
    schema_of,
    search_system,
)
from tests.postgres import running_server

SMALL = "samples = 4\n"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def candidates(store: str) -> list[object]:
    """What must not depend on who sampled."""
    return [
        (row.index, row.request, row.state, row.cell[0].tobytes() if row.cell else None)
        for row in sorted(read_rows(store), key=lambda row: row.index)
    ]


class TestFile:
    def test_systems_and_options(self, tmp_path: Path) -> None:
        text = """
            store = "stores"
            systems = ["Cu-Si-K"]
            elements = ["Na", "Li", "O"]
            sizes = [2, 3]
            samples = 30
            relax = true
            max_hours_in_all = 2
            [[system]]
            elements = "O-Li"
            samples = 5
            seed = 3
            """
        systems = load_systems(written(tmp_path / "c.toml", text))
        assert systems.names == ["Cu-Si-K", "Li-O", "Li-Na", "O-Na", "Li-O-Na", "O-Li"]
        assert systems.options["Cu-Si-K"] == SystemOptions(samples=30, relax=True)
        assert systems.options["O-Li"] == SystemOptions(samples=5, relax=True, seed=3)
        assert systems.store_of("Li-O") == str(tmp_path / "stores" / "Li-O.db")
        assert systems.max_hours == 2

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("store = 3\nsystems = ['Na-Cl']", "store = 3 should be str"),
            ("systems = ['Na-Cl']", "store missing"),
            ("store = 's'", "no system is named"),
            ("store = ''\nsystems = ['Na-Cl']", "store is empty"),
            ("store = 's'\nsystems = ['Na-Xx']", "Xx"),
            ("store = 's'\nsystems = ['Na-Na']", "names an element twice"),
            ("store = 's'\nsystems = ['Na-Cl']\nsample = 4", "unknown keys ['sample']"),
            ("store = 's'\nsystems = ['Na-Cl']\nsamples = 0", "the least is 1"),
            ("store = 's'\nsystems = ['Na-Cl']\npreset = 'best'", "preset 'best'"),
            ("store = 's'\nelements = ['Na']\nsizes = [9]", "sizes = [9]"),
            ("store = 's'\nelements = ['Na']", "are 0 systems"),
            ("store = 's'\n[[system]]\nsamples = 3", "give elements"),
            ("store = 's'\n[[system]]\nelements = 'Na-Cl'\nsamples = 'x'", "system Na-Cl"),
            ("store =", "is not TOML"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = written(tmp_path / "c.toml", text)
        assert run(["campaign", "run", str(path)]) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert "campaign file" in shown
        assert "Traceback" not in shown

    def test_each_part_begins_elsewhere_and_reaches_all(self) -> None:
        systems = Systems("s", dict.fromkeys("ABCDE", SystemOptions()))
        orders = [systems.order(part, 3) for part in range(3)]
        assert [order[0] for order in orders] == ["A", "B", "D"]
        assert all(sorted(order) == list("ABCDE") for order in orders)

    def test_schemas_are_names_in_postgresql(self) -> None:
        assert schema_of("Cu-Si-K") == "cu_si_k"
        systems = Systems("postgresql://me@host/db?sslmode=require", {"Na-Cl": SystemOptions()})
        assert systems.store_of("Na-Cl") == (
            "postgresql://me@host/db?sslmode=require&options=-csearch_path%3Dna_cl"
        )


class TestHere:
    def test_run_go_on_status_report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = written(
            tmp_path / "c.toml", "store = 'stores'\nsystems = ['Na-Cl', 'Cu-Si-K']\n" + SMALL
        )
        assert run(["campaign", "report", str(path), "--out", str(tmp_path / "r")]) == 2
        assert run(["campaign", "status", str(path)]) == 0
        assert "0 of 2 systems finished, 0 begun; 0 of 8" in capsys.readouterr().out
        assert run(["campaign", "run", str(path), "--workers", "1", "--part", "1/2"]) == 0
        first, second = capsys.readouterr().out.splitlines()[1:3]
        assert first.startswith("Cu-Si-K: 4 of 4 candidates")  # its part comes first
        assert second.startswith("Na-Cl: 4 of 4 candidates")

        alone = tmp_path / "alone.db"
        options = ["--max-samples", "4", "--workers", "1", "--out", str(alone)]
        assert run(["search", "--elements", "Cu,Si,K", *options]) == 0
        assert candidates(str(alone)) == candidates(str(tmp_path / "stores" / "Cu-Si-K.db"))
        capsys.readouterr()

        assert run(["campaign", "run", str(path), "--workers", "1"]) == 0
        assert capsys.readouterr().out.splitlines() == ["2 systems", "2 of 2 systems finished"]
        assert run(["campaign", "status", str(path)]) == 0
        assert "2 of 2 systems finished, 0 begun; 8 of 8" in capsys.readouterr().out
        assert run(["campaign", "report", str(path), "--out", str(tmp_path / "r")]) == 0
        assert "4 left" in (tmp_path / "r" / "systems.svg").read_text()
        lines = (tmp_path / "r" / "systems.csv").read_text().splitlines()
        assert [line.split(",")[:3] for line in lines[1:]] == [
            ["Na-Cl", "yes", "4"],
            ["Cu-Si-K", "yes", "4"],
        ]
        assert run(["campaign", "report", str(path), "--out", str(tmp_path / "r")]) == 2

    def test_more_samples_are_not_finished(self, tmp_path: Path) -> None:
        few = Systems(str(tmp_path), {"Na-Cl": SystemOptions(samples=2)})
        more = Systems(str(tmp_path), {"Na-Cl": SystemOptions(samples=3)})
        assert search_system(few, "Na-Cl", 1).problem == ""
        assert few.state("Na-Cl").finished
        assert not more.state("Na-Cl").finished
        assert search_system(few, "Na-Cl", 1).passed_over
        assert not search_system(more, "Na-Cl", 1).passed_over
        assert read_finished(more.store_of("Na-Cl"), relaxed=False) == 3
        assert read_finished(more.store_of("Na-Cl"), relaxed=True) == 0

    def test_sampling_alone_leaves_the_rest_to_another_call(self, tmp_path: Path) -> None:
        systems = Systems(str(tmp_path / "a"), {"Na-Cl": SystemOptions(samples=3)})
        whole = Systems(str(tmp_path / "b"), systems.options)
        assert search_system(systems, "Na-Cl", 1, only_sample=True).problem == ""
        assert systems.state("Na-Cl").sampled == 3
        assert not systems.state("Na-Cl").finished
        assert {row.state for row in read_rows(systems.store_of("Na-Cl"))} <= {
            "sampled",
            "rejected",
        }
        for each in (systems, whole):
            assert search_system(each, "Na-Cl", 1).problem == ""
            assert each.state("Na-Cl").finished
        assert candidates(systems.store_of("Na-Cl")) == candidates(whole.store_of("Na-Cl"))

    def test_nothing_is_begun_after_the_time(self, tmp_path: Path) -> None:
        one = {"Na-Cl": SystemOptions(samples=2)}
        systems = Systems(str(tmp_path), one, max_hours=1e-6)
        until = systems.deadline()
        time.sleep(0.01)
        assert search_system(systems, "Na-Cl", 1, until=until) == Outcome("Na-Cl", "", 0.0, True)
        assert not list(tmp_path.iterdir())
        assert Systems(str(tmp_path), one).deadline() == float("inf")

    def test_one_system_that_cannot_be_searched_ends_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "Na-Cl.db").write_bytes(b"not a database at all")
        both = dict.fromkeys(("Na-Cl", "K-Cl"), SystemOptions(samples=2))
        systems = Systems(str(tmp_path), both)
        bad, good = (search_system(systems, name, 1) for name in systems.order())
        assert "not a store" in bad.problem or "damaged" in bad.problem
        assert good == Outcome("K-Cl", "", good.seconds)
        assert systems.state("Na-Cl").problem or not systems.state("Na-Cl").states

    @pytest.mark.parametrize("part", ["2/2", "a/2", "1", "1/"])
    def test_parts(self, part: str, tmp_path: Path) -> None:
        path = written(tmp_path / "c.toml", "store = 's'\nsystems = ['Na-Cl']\n")
        assert run(["campaign", "run", str(path), "--part", part]) == 2

    def test_in_one_postgresql_database(self) -> None:
        with running_server() as server:
            if server is None:
                pytest.skip("no PostgreSQL server can be had")
            self._in_one_database(server.database("many"))

    def test_a_database_without_rights(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with running_server() as server:
            if server is None:
                pytest.skip("no PostgreSQL server can be had")
            import psycopg2

            owner = server.database("locked")
            with closing(psycopg2.connect(owner)) as connection:
                connection.autocommit = True
                connection.cursor().execute("CREATE ROLE guest LOGIN")
                connection.cursor().execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            address = owner.replace("lx@", "guest@")
            path = written(
                tmp_path / "c.toml", f"store = '{address}'\nsystems = ['Na-Cl']\n" + SMALL
            )
            few = ["--elements", "Na,Cl", "--max-samples", "2", "--workers", "1"]
            for line in (["campaign", "run", str(path)], ["search", *few, "--out", address]):
                assert run(line) == 2
                shown = capsys.readouterr().err
                assert "permission denied" in shown
                assert "needs the right to create schemas and tables" in shown
                assert "Traceback" not in shown

    def _in_one_database(self, postgres: str) -> None:
        both = dict.fromkeys(("Na-Cl", "K-Cl"), SystemOptions(samples=2))
        systems = Systems(postgres, both)
        assert [state.states for state in systems.states()] == [{}, {}]
        assert [search_system(systems, name, 1).problem for name in both] == ["", ""]
        assert all(state.finished and state.sampled == 2 for state in systems.states())
        assert [e.formula for e in systems.best("Na-Cl", 1)] != []


def entry(formula: str, energy: float | None, known: str = "") -> Entry:
    return Entry(
        uid="000000", cell=(np.eye(3) * 4, np.zeros((1, 3)), np.array([11])), formula=formula,
        space_group=1, e_above_hull=energy, properties={"known": known} if known else {},
    )  # fmt: skip


class TestMap:
    def test_what_a_cell_says(self) -> None:
        best = [entry("LiO", 0.03), entry("Li2O", -0.012, "mp-1"), entry("LiO2", 0.06)]
        cell = map_cell("O-Li", best)
        assert cell.elements == ("Li", "O")
        assert cell.energy == -0.012
        assert cell.lines == ("Li2O", "-12 meV (known)", "and 1 more")
        assert not cell.unfinished
        assert map_cell("Li-O", best, finished=False).unfinished
        assert map_cell("Li-O", [], begun=False, finished=False).lines == ("not begun",)
        assert map_cell("Li-O", [], problem="locked").lines == ("failed",)
        assert map_cell("Li-O", []).lines == ("none left",)
        alone = map_cell("Li-O", [entry("LiO", None)], left=7)
        assert alone.lines == ("LiO", "no energy", "7 left")
        assert np.isnan(alone.energy)

    def test_every_system_is_drawn_once_in_its_place(self, tmp_path: Path) -> None:
        from itertools import combinations

        elements = ["Li", "O", "Na", "Si"]
        names = ["-".join(some) for size in (1, 2, 3) for some in combinations(elements, size)]
        cells = [
            map_cell(name, [entry(name.replace("-", ""), 0.001 * (7 * k - 20))])
            for k, name in enumerate(names)
        ]
        path = tmp_path / "map.svg"
        assert draw_systems(cells, path)
        tree = ElementTree.parse(path).getroot()
        space = "{http://www.w3.org/2000/svg}"
        said = "\n".join("".join(t.itertext()) for t in tree.iter(f"{space}text"))
        for k, name in enumerate(names):
            if "-" in name:  # an element alone is also the name of columns and rows
                assert said.split("\n").count(name.replace("-", "")) == 1
            assert f"{7 * k - 20:+d} meV" in said
        for size in (2, 3):
            assert f"systems of {size} elements" in said
        for row in ("Li-O", "Li-Na", "O-Na"):
            assert row in said.split("\n")
        assert "meV/atom" in said
        frames = [
            p for p in tree.iter(f"{space}path") if "stroke-width: 2.2" in p.get("style", "")
        ]
        assert len(frames) == sum(cell.energy <= 0 for cell in cells) == 3

    def test_rows_and_columns(self) -> None:
        cells = [map_cell(name, []) for name in ("Na-Li-O", "Si-O-Li", "O-Na-Si")]
        rows, columns, of = _grid(cells)
        assert rows == [("Li", "O"), ("O", "Na")]
        assert columns == ["Na", "Si"]
        assert set(of) == {
            (("Li", "O"), "Na"), (("Li", "O"), "Si"), (("O", "Na"), "Si")
        }  # fmt: skip

    def test_too_many_are_not_drawn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("langevin_xtal.report.systems.MOST_SYSTEMS", 1)
        cells = [map_cell(name, []) for name in ("Li-O", "Na-O")]
        assert not draw_systems(cells, tmp_path / "map.svg")
        assert not list(tmp_path.iterdir())

    def test_a_system_of_which_nothing_is_left(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = written(tmp_path / "c.toml", "store = 's'\nsystems = ['Na-Cl', 'K-Cl']\n" + SMALL)
        systems = load_systems(path)
        systems.prepare("Na-Cl")
        with Store(systems.store_of("Na-Cl"), {"version": "0", "elements": "Na,Cl"}) as store:
            store.claim("sample", range(1), 1)
            store.add([Row(0, "Na:1 in P1 (1)", 1, None, {"reason": "no candidate"})])
        assert run(["campaign", "report", str(path), "--out", str(tmp_path / "r")]) == 0
        drawn = (tmp_path / "r" / "systems.svg").read_text()
        assert "none left" in drawn
        assert "not begun" in drawn


class TestClusterFile:
    def test_options_of_jobs(self, tmp_path: Path) -> None:
        text = """
            scheduler = "slurm"
            jobs = 3
            processes = 8
            memory = "16GB"
            queue = "short"
            directives = ["--exclusive"]
            prologue = ["module load python"]
            """
        config = load_cluster(written(tmp_path / "c.toml", text))
        options = config.job_options()
        assert (options["cores"], options["processes"], options["queue"]) == (8, 8, "short")
        assert options["job_extra_directives"] == ["--exclusive"]
        assert options["job_script_prologue"][-1] == "module load python"
        assert "export OMP_NUM_THREADS=1" in options["job_script_prologue"]
        assert "account" not in options

    @pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf", "sge"])
    def test_jobs_are_written(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        jobqueue = pytest.importorskip("dask_jobqueue")
        from langevin_xtal.cluster import CLUSTERS

        config = ClusterConfig(scheduler=kind, processes=2, queue="short", memory="6GB")
        job = getattr(jobqueue, CLUSTERS[kind]).job_cls(
            "tcp://127.0.0.1:1", "name", protocol="tcp", **config.job_options(),
            **({"use_stdin": True} if kind == "lsf" else {}),
        )  # fmt: skip
        script = job.job_script()
        assert "short" in script
        assert "export OMP_NUM_THREADS=1" in script
        assert "--nthreads 1" in script
        assert "--nworkers 2" in script

    def test_jobs_with_a_gpu(self, tmp_path: Path) -> None:
        text = """
            scheduler = "slurm"
            jobs = 3
            processes = 8
            memory = "16GB"
            queue = "short"
            directives = ["--exclusive"]
            [gpu]
            queue = "gpu"
            directives = ["--gres=gpu:1"]
            """
        config = load_cluster(written(tmp_path / "c.toml", text))
        gpu = config.gpu
        assert gpu is not None
        assert (gpu.jobs, gpu.processes, gpu.queue, gpu.memory) == (1, 1, "gpu", "16GB")
        assert (config.jobs, config.processes, config.queue) == (3, 8, "short")
        jobqueue = pytest.importorskip("dask_jobqueue")
        options = {**config.job_options("CPU"), "interface": None, "config_name": "slurm"}
        spec = {"cls": jobqueue.SLURMCluster.job_cls, "options": options}
        made = _gpu_jobs(spec, config, gpu)
        assert list(made) == ["gpu-0"]
        scripts = [
            spec["cls"]("tcp://127.0.0.1:1", "name", protocol="tcp", **one).job_script()
            for one in (options, made["gpu-0"]["options"])
        ]
        here, there = (("short", "--exclusive", "CPU=1"), ("gpu", "--gres=gpu:1", "GPU=1"))
        for script, mine, others in zip(scripts, (here, there), (there, here), strict=True):
            assert f"-p {mine[0]}\n" in script
            assert f"#SBATCH {mine[1]}\n" in script
            assert f"--resources {mine[2]}" in script
            assert not any(text in script for text in others[1:] if text != "GPU=1")
            assert f"--resources {others[2]}" not in script
            assert "--mem=15G" in script

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("scheduler = 'slurm'\nnodes = 3", "unknown keys ['nodes']"),
            ("scheduler = 'slurm'\n[gpu]\nnodes = 3", "gpu: unknown keys ['nodes']"),
            ("scheduler = 'slurm'\n[gpu]\nscheduler = 'pbs'", "gpu: scheduler has no place"),
            ("scheduler = 'slurm'\ngpu = 2", "gpu"),
            ("scheduler = 'slurm'\n[gpu]\njobs = 0", "jobs is 0"),
            ("scheduler = 'cron'", "scheduler 'cron' is not known"),
            ("jobs = 2", "scheduler missing"),
            ("scheduler = 'local'\njobs = 0", "jobs is 0"),
            ("scheduler = 'local'\njobs = 1.5", "should be int"),
        ],
    )
    def test_what_is_wrong_is_said(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            load_cluster(written(tmp_path / "x.toml", text))
        assert said in str(caught.value)
        assert "x.toml" in str(caught.value)


def slow_square(folder: str, number: int) -> int:
    """A piece that says who does it."""
    Path(folder, f"{number}-{os.getpid()}").touch()
    time.sleep(0.1)
    return number * number


def resources_of(folder: str, kind: str, number: int) -> str:
    """What the worker declares that does the piece."""
    from distributed import get_worker

    declared = ",".join(get_worker().state.total_resources)
    Path(folder, f"{kind}-{number}-{declared}").touch()
    return declared


def raising(number: int) -> int:
    raise InputError(f"number {number} is wrong")


@pytest.fixture(scope="class")
def engine() -> Iterator[object]:
    pytest.importorskip("distributed")
    from langevin_xtal.cluster import dask_engine

    with dask_engine(cluster=ClusterConfig(scheduler="local", jobs=2)) as made:
        made.wait(60)
        yield made


class TestDask:
    @pytest.mark.slow
    def test_in_order_and_complete_after_a_worker_was_killed(
        self, engine: object, tmp_path: Path
    ) -> None:
        from functools import partial

        work = partial(slow_square, str(tmp_path))
        with use_engine(engine):  # type: ignore[arg-type]
            results = parallel_map(work, range(30), chunk=2)
            first = next(results)
            someone = int(next(tmp_path.iterdir()).name.split("-")[1])
            os.kill(someone, signal.SIGKILL)
            assert [first, *results] == [n * n for n in range(30)]
        assert list(parallel_map(abs, [-1])) == [1]  # the block is over

    @pytest.mark.slow
    def test_gpu_workers_and_others_each_do_their_own(self, tmp_path: Path) -> None:
        pytest.importorskip("distributed")
        from functools import partial

        from langevin_xtal.cluster import dask_engine

        config = ClusterConfig(scheduler="local", gpu=ClusterConfig(scheduler="local"))
        before, after = (partial(resources_of, str(tmp_path), kind) for kind in ("gpu", "cpu"))
        with dask_engine(cluster=config) as made:
            made.wait(60)
            assert made.resources() == {"CPU", "GPU"}
            assert dict(made.as_done(after, range(6), on_gpu=before)) == dict.fromkeys(
                range(6), "CPU"
            )
            with use_engine(made):
                assert set(parallel_map(after, range(6, 30), chunk=1)) == {"CPU"}
        names = sorted(path.name for path in tmp_path.iterdir())
        expected = [f"cpu-{k}-CPU" for k in range(30)] + [f"gpu-{k}-GPU" for k in range(6)]
        assert names == sorted(expected)

    def test_without_a_gpu_nothing_goes_before(self, engine: object, tmp_path: Path) -> None:
        from functools import partial

        both = [partial(resources_of, str(tmp_path), kind) for kind in ("gpu", "cpu")]
        done = dict(engine.as_done(both[1], [1, 2], on_gpu=both[0]))  # type: ignore[attr-defined]
        assert done == {1: "", 2: ""}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu-1-", "cpu-2-"]

    @pytest.mark.slow
    def test_a_campaign_samples_on_the_gpu_workers(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("distributed")
        path = written(tmp_path / "c.toml", "store = 's'\nsystems = ['Na-Cl', 'K-Cl']\n" + SMALL)
        cluster = written(tmp_path / "l.toml", "scheduler = 'local'\n[gpu]\njobs = 1\n")
        monkeypatch.setattr("langevin_xtal.cli.terminal.LINE_SECONDS", 0.2)
        line = ["campaign", "run", str(path), "--engine", "dask", "--cluster", str(cluster)]
        assert run(line) == 0
        said = capsys.readouterr()
        assert "2 of 2 systems finished" in said.out
        assert "dashboard at http://" in said.err
        assert re.search(r"systems: \d of 2 in \d+ s.*; 2 workers", said.err)
        systems = load_systems(path)
        alone = Systems(str(tmp_path / "alone"), systems.options)
        for name in systems.names:
            assert not search_system(alone, name, 1).problem
            assert candidates(systems.store_of(name)) == candidates(alone.store_of(name))

    def test_errors_are_passed_on(self, engine: object) -> None:
        with use_engine(engine), pytest.raises(InputError, match="number 5 is wrong"):  # type: ignore[arg-type]
            list(parallel_map(raising, [5], chunk=1))

    def test_systems_are_those_of_one_process(self, engine: object, tmp_path: Path) -> None:
        from functools import partial

        both = dict.fromkeys(("Na-Cl", "K-Cl"), SystemOptions(samples=3))
        here, there = Systems(str(tmp_path / "a"), both), Systems(str(tmp_path / "b"), both)
        for name in both:
            search_system(here, name, 1)
        outcomes = dict(engine.as_done(partial(search_system, there, workers=1), list(both)))  # type: ignore[attr-defined]
        assert sorted(outcomes) == ["K-Cl", "Na-Cl"]
        assert not any(outcome.problem for outcome in outcomes.values())
        for name in both:
            assert candidates(here.store_of(name)) == candidates(there.store_of(name))

    def test_other_versions_and_weights_are_refused(self) -> None:
        assert difference(("1", "a"), ("1", "a")) is None
        assert "langevin-xtal 2, this process 1" in str(difference(("1", "a"), ("2", "a")))
        assert "other weights (b)" in str(difference(("1", "a"), ("1", "b")))

    def test_workers_with_threads_are_refused(self) -> None:
        distributed = pytest.importorskip("distributed")
        from langevin_xtal.cluster import DaskEngine

        cluster = distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=":0", silence_logs=50
        )
        with (
            closing(cluster),
            closing(distributed.Client(cluster, set_as_default=False)) as own,
            pytest.raises(InputError, match="has 2 threads"),
        ):
            DaskEngine(own).wait(60)

    @pytest.mark.parametrize(
        ("program", "said"),
        [
            ("", "No such file or directory: 'sbatch'"),
            ("echo 'sbatch: error: invalid partition: x' >&2; exit 1", "invalid partition: x"),
        ],
    )
    def test_jobs_that_cannot_be_submitted(
        self, program: str, said: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        pytest.importorskip("dask_jobqueue")
        folder = tmp_path / "bin"
        folder.mkdir()
        if program:
            written(folder / "sbatch", f"#!/bin/sh\n{program}\n").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/bin" if program else str(folder))
        path = written(tmp_path / "c.toml", "store = 's'\nsystems = ['Na-Cl']\n")
        cluster = written(tmp_path / "s.toml", "scheduler = 'slurm'\ninterface = 'lo'\n")
        line = ["campaign", "run", str(path), "--engine", "dask", "--cluster", str(cluster)]
        assert run(line) == 2
        shown = capsys.readouterr().err
        assert "workers of slurm cannot be had" in shown
        assert said in shown
        assert "Traceback" not in shown

    @pytest.mark.parametrize("which", ["version", "weights"])
    def test_a_worker_of_another_kind_is_refused(
        self, engine: object, which: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = facts()
        other = ("9.9", mine[1]) if which == "version" else (mine[0], "0" * 16)
        # the worker runs facts() of the package it has; this process takes itself for another
        monkeypatch.setattr("langevin_xtal.cluster.difference", lambda *a: difference(other, a[1]))
        with pytest.raises(InputError, match=f"a worker has .*{mine[which == 'weights']}"):
            engine.wait(60)  # type: ignore[attr-defined]

    def test_a_worker_of_another_kind_does_no_piece(self) -> None:
        with pytest.raises(InputError, match="a worker has langevin-xtal"):
            _apply_checked(("9.9", facts()[1]), abs, [-1])
        with pytest.raises(InputError, match="other weights"):
            _apply_checked((facts()[0], "0"), abs, [-1])
        assert _apply_checked(facts(), abs, [-1]) == [1]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--engine", "dask"], "needs one of --scheduler ADDRESS and --cluster FILE"),
            (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler needs --engine dask"),
            (
                ["--engine", "dask", "--scheduler", "tcp://127.0.0.1:1"],
                "no Dask scheduler answers",
            ),
            (["--engine", "dask", "--scheduler", "nonsense://"], "no Dask scheduler answers"),
        ],
    )
    def test_bad_options(
        self, options: list[str], said: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        pytest.importorskip("distributed")
        monkeypatch.setattr("langevin_xtal.cluster.CONNECT_SECONDS", 1.0)
        path = written(tmp_path / "c.toml", "store = 's'\nsystems = ['Na-Cl']\n")
        assert run(["campaign", "run", str(path), *options]) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert "Traceback" not in shown
