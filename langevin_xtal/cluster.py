"""Work on a cluster, by Dask: a running scheduler, or jobs of SLURM, PBS, LSF or SGE.

A worker is one process with one thread, and has the same version of this package and of its
weights as the process that hands out the work; others are refused. What a worker was doing when it
was lost is done again by another. Source of the job systems: the package dask-jobqueue.

Workers may declare one of Dask's resources, :data:`GPU` or :data:`CPU`. Where some have a GPU,
sampling is done by them; where some have declared a CPU, all other work is done by these.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from langevin_xtal.config.tables import from_table, read_toml, table_of
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.extras import require
from langevin_xtal.parallel import ENVIRONMENT, apply_to
from langevin_xtal.version import __version__

Item = TypeVar("Item")
Result = TypeVar("Result")

CLUSTERS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
"""Classes of dask-jobqueue by the name in a cluster file."""
LOCAL = "local"
GPU, CPU = "GPU", "CPU"
"""Resources of workers, one of each: ``dask worker ADDRESS --nthreads 1 --resources GPU=1``."""
CONNECT_SECONDS = 10.0
"""A scheduler that does not answer for so long is taken for absent."""
AHEAD = 4
"""Chunks handed out for each worker; more would only fill memory."""
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""How old the list of workers may be where pieces are handed out."""
TOGETHER = 1000
"""Pieces sent to the scheduler at a time."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Workers to ask a job system for, as a cluster file (TOML) has it."""

    scheduler: str  #: slurm, pbs, lsf, sge, or local: processes of this computer
    jobs: int = 1
    processes: int = 1  #: workers of a job, one core each
    memory: str = "4GB"  #: of a job
    walltime: str = "01:00:00"  #: of a job
    queue: str = ""  #: or partition
    account: str = ""
    interface: str = ""  #: of the network, such as ib0
    directives: Sequence[str] = ()  #: more lines of the job's head, such as "--exclusive"
    prologue: Sequence[str] = ()  #: lines of the shell before the worker starts
    log_folder: str = ""  #: for what jobs print
    gpu: ClusterConfig | None = None
    """Jobs with a GPU beside these, whose workers sample while those of the others do the rest."""

    def __post_init__(self) -> None:
        known = (*CLUSTERS, LOCAL)
        if self.scheduler not in known:
            raise InputError(
                f"scheduler {self.scheduler!r} is not known; give one of {', '.join(known)}"
            )
        for name in ("jobs", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; the least is 1")

    def job_options(self, resource: str = "") -> dict[str, Any]:
        """Options of the classes of dask-jobqueue, for workers that declare a resource."""
        threads = [f"export {name}={value}" for name, value in ENVIRONMENT.items()]
        given = {
            "queue": self.queue,
            "account": self.account,
            "interface": self.interface,
            "log_directory": self.log_folder,
            "job_extra_directives": list(self.directives),
            "worker_extra_args": ["--resources", f"{resource}=1"] if resource else [],
        }
        return {
            "cores": self.processes,
            "processes": self.processes,
            "memory": self.memory,
            "walltime": self.walltime,
            "job_script_prologue": [*threads, *self.prologue],
            **{name: value for name, value in given.items() if value},
        }


def load_cluster(path: str | Path) -> ClusterConfig:
    """A cluster file. What its table ``[gpu]`` does not name is as for the other jobs, but for
    their number and that of their workers.

    Raises
    ------
    InputError
        When it cannot be read, for unknown keys and for values out of range; names the place.
    """
    where = f"cluster file {path}"
    table = read_toml(Path(path), where)
    gpu = table.pop("gpu", None)
    try:
        config = from_table(ClusterConfig, table, "top")
        if gpu is None:
            return config
        own = table_of(gpu, "gpu")
        if strange := sorted({"scheduler", "gpu"} & set(own)):
            raise InputError(f"gpu: {strange[0]} has no place there; it is that of the top")
        shared = {k: v for k, v in table.items() if k not in ("jobs", "processes")}
        return replace(config, gpu=from_table(ClusterConfig, {**shared, **own}, "gpu"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@cache
def facts() -> tuple[str, str]:
    """Version of this package, and the first digits of a hash of the weights that it ships."""
    digest = hashlib.sha256()
    for entry in sorted(resources.files("langevin_xtal.weights").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".safetensors"):
            digest.update(entry.name.encode())
            digest.update(entry.read_bytes())
    return __version__, digest.hexdigest()[:16]


def _apply_checked(
    expected: tuple[str, str], function: Callable[[Item], Result], items: list[Item]
) -> list[Result]:
    """On the worker: refuse to work with another version or other weights."""
    if (problem := difference(expected, facts())) is not None:
        raise InputError(problem)
    return apply_to(function, items)


def difference(expected: tuple[str, str], found: tuple[str, str]) -> str | None:
    """A sentence on what a worker has of other kind; None where all is the same."""
    if expected[0] != found[0]:
        return (
            f"a worker has langevin-xtal {found[0]}, this process {expected[0]}: install the same "
            "version for the workers"
        )
    if expected[1] != found[1]:
        return (
            f"a worker has other weights ({found[1]}) than this process ({expected[1]}): install "
            "the same package for the workers"
        )
    return None


class DaskEngine:
    """An engine of :func:`~langevin_xtal.parallel.parallel_map` on the workers of a scheduler.

    Parameters
    ----------
    client
        Of ``distributed``; see :func:`dask_engine`, which makes one.
    expected
        Resources that workers will declare which are still to come.
    """

    def __init__(self, client: Any, expected: Collection[str] = ()) -> None:
        self.client, self.expected = client, frozenset(expected)
        self._known: tuple[float, dict[str, Any]] = (-math.inf, {})

    @property
    def dashboard(self) -> str:
        """Address of Dask's page on what is going on; empty without one."""
        return str(self.client.dashboard_link or "")

    def workers(self) -> int:
        """Workers there are now."""
        return len(self._workers())

    def _workers(self, age: float = 0.0) -> dict[str, Any]:
        """What the scheduler says of each, at most so many seconds ago."""
        now = time.monotonic()
        if now - self._known[0] > age:  # a thousand workers take it a tenth of a second
            with _scheduler_errors():
                info = self.client.scheduler_info(n_workers=-1)
            self._known = (now, dict(info.get("workers", {})))
        return self._known[1]

    def resources(self) -> frozenset[str]:
        """What workers declare, or will."""
        workers = self._workers(LOOK_SECONDS).values()
        declared = (set(worker.get("resources") or ()) for worker in workers)
        return self.expected.union(*declared)

    def wait(self, seconds: float | None = None) -> None:
        """Until there is a worker; then look at all there are.

        Raises
        ------
        LangevinXtalError
            When there is none after so many seconds.
        InputError
            For a worker with several threads, another version of the package or other weights.
        """
        begin = time.monotonic()
        while not self.workers():
            if seconds is not None and time.monotonic() - begin > seconds:
                raise LangevinXtalError(
                    f"the scheduler has had no worker for {seconds:g} s; start one with: "
                    "dask worker ADDRESS --nthreads 1"
                )
            time.sleep(POLL_SECONDS)
        for name, worker in self._workers().items():
            if worker["nthreads"] != 1:
                raise InputError(
                    f"worker {name} has {worker['nthreads']} threads; start workers with "
                    "--nthreads 1, and more of them with --nworkers"
                )
        with _scheduler_errors():
            found = self.client.run(facts, on_error="return")
        for name, value in found.items():
            if isinstance(value, BaseException):
                raise InputError(
                    f"worker {name} cannot import this version of langevin-xtal ({value}): "
                    "install the same package for the workers"
                )
            if (problem := difference(facts(), value)) is not None:
                raise InputError(problem)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], chunk: int = 1
    ) -> Iterator[Result]:
        """``function`` of every item, in the order of the items.

        Raises
        ------
        LangevinXtalError
            When the scheduler is lost, or a piece has ended several workers. What ``function``
            raises is passed on.
        """
        source = iter(items)
        waiting: deque[Any] = deque()
        try:
            while True:
                self._hand_out(function, source, chunk, waiting)
                if not waiting:
                    return
                yield from self._result(waiting[0])
                waiting.popleft()
        finally:
            self._cancel(waiting)

    def as_done(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        on_gpu: Callable[[Item], object] | None = None,
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with ``function`` of it, as they are done; for pieces of minutes or hours.

        Parameters
        ----------
        on_gpu
            Done with each item before, by the workers with a GPU; left out where there are none.
        """
        distributed = require("distributed", "cluster", "the engine dask")
        first = on_gpu if GPU in self.resources() else None
        before: dict[Any, Item] = {}
        of: dict[Any, Item] = {}
        try:
            for k in range(0, len(items), TOGETHER):
                some = list(items[k : k + TOGETHER])
                made = self._submit(first or function, [[item] for item in some],
                                    CPU if first is None else GPU)  # fmt: skip
                (of if first is None else before).update(zip(made, some, strict=True))
            done = distributed.as_completed([*before, *of], loop=self.client.loop)
            for future in done:
                result = self._result(future)[0]
                if future in before:
                    item = before.pop(future)
                    (more,) = self._submit(function, [[item]], CPU)
                    of[more] = item
                    done.add(more)
                else:
                    yield of.pop(future), result
        finally:
            self._cancel([*before, *of])

    def _hand_out(
        self,
        function: Callable[[Item], Result],
        source: Iterator[Item],
        chunk: int,
        waiting: deque[Any],
    ) -> None:
        most = AHEAD * max(1, len(self._workers(LOOK_SECONDS)))
        while len(waiting) < most and (batch := list(islice(source, chunk))):
            waiting += self._submit(function, [batch], CPU)

    def _submit(
        self, function: Callable[[Item], object], batches: list[list[Item]], resource: str
    ) -> list[Any]:
        """Futures of ``function``, by workers with the resource if there are any."""
        apply = partial(_apply_checked, facts(), function)
        needed = {resource: 1} if resource in self.resources() else None
        with _scheduler_errors():
            return list(self.client.map(apply, batches, pure=False, resources=needed))

    def _result(self, future: Any) -> list[Any]:
        with _scheduler_errors():
            result: list[Any] = future.result()
        return result

    def _cancel(self, futures: Iterable[Any]) -> None:
        left = [future for future in futures if not future.done()]
        if left:
            with suppress(Exception):  # the scheduler may be gone
                self.client.cancel(left, force=True)


@contextmanager
def _scheduler_errors() -> Iterator[None]:
    """What Dask raises as this package's errors."""
    try:
        yield
    except LangevinXtalError:
        raise
    except Exception as error:
        name = type(error).__name__
        if name == "KilledWorker":
            raise LangevinXtalError(
                "several workers were lost with the same piece of work; have they enough memory? "
                "what was finished is kept, and the same command goes on"
            ) from None
        if name in _LOST or isinstance(error, ConnectionError):
            raise LangevinXtalError(
                f"the scheduler was lost ({name}); what was finished is kept, and the same "
                "command goes on when it is back"
            ) from None
        raise


_LOST = frozenset(
    {"CommClosedError", "FutureCancelledError", "CancelledError", "FuturesCancelledError",
     "ClosedClientError", "TimeoutError"}
)  # fmt: skip
"""Names of the errors of a scheduler that is gone."""


@contextmanager
def dask_engine(
    address: str | None = None, cluster: ClusterConfig | None = None
) -> Iterator[DaskEngine]:
    """Workers of a running scheduler, or of jobs that are submitted here and end with the block.

    Parameters
    ----------
    address
        Such as ``"tcp://10.0.0.1:8786"``.
    cluster
        See :func:`load_cluster`; one of the two is given.

    Raises
    ------
    InputError
        When no scheduler answers, or jobs cannot be submitted.
    MissingPackageError
        Without the extra ``cluster``.
    """
    if (address is None) == (cluster is None):
        raise InputError("the engine dask needs either a scheduler's address or a cluster file")
    distributed = require("distributed", "cluster", "the engine dask")
    with ExitStack() as stack:
        where = address if cluster is None else stack.enter_context(_jobs(cluster))
        try:
            client = distributed.Client(
                where, timeout=CONNECT_SECONDS, set_as_default=False, name="langevin-xtal"
            )
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"no Dask scheduler answers at {address} within {CONNECT_SECONDS:g} s "
                f"({type(error).__name__}); start one with: dask scheduler"
            ) from None
        stack.callback(_close, client)
        yield DaskEngine(client, () if cluster is None or cluster.gpu is None else (CPU, GPU))


@contextmanager
def _jobs(config: ClusterConfig) -> Iterator[Any]:
    """A scheduler in this process, and its workers as jobs."""
    declared = "" if config.gpu is None else CPU
    if config.scheduler == LOCAL:
        distributed = require("distributed", "cluster", "the engine dask")
        make = partial(
            distributed.LocalCluster,
            n_workers=config.jobs * config.processes,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
            **({"resources": {declared: 1}} if declared else {}),
        )
    else:
        jobqueue = require("dask_jobqueue", "cluster", f"jobs of {config.scheduler}")
        make = partial(
            getattr(jobqueue, CLUSTERS[config.scheduler]), **config.job_options(declared)
        )
    with ExitStack() as stack:
        try:
            cluster = make()
            stack.callback(_close, cluster)
            if config.gpu is not None:
                cluster.worker_spec.update(_gpu_jobs(cluster.new_spec, config, config.gpu))
            if config.scheduler != LOCAL:
                for _ in range(config.jobs):
                    cluster.worker_spec.update(cluster.new_worker_spec())
            cluster.sync(_submitted, cluster)  # unlike scale, which would not say what went wrong
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"workers of {config.scheduler} cannot be had ({_last_line(error)})"
            ) from None
        yield cluster


async def _submitted(cluster: Any) -> None:
    """Until the jobs are in the queue, or the processes there; raises what goes wrong."""
    await cluster


def _last_line(error: Exception) -> str:
    """What a program such as ``sbatch`` says last, of an error that quotes all it said."""
    found = [line.strip() for line in str(error).splitlines() if line.strip()]
    return found[-1] if found else type(error).__name__


def _gpu_jobs(
    spec: Mapping[str, Any], others: ClusterConfig, config: ClusterConfig
) -> dict[str, dict[str, Any]]:
    """Jobs with a GPU as Dask's SpecCluster wants them, by name, made from those of the others."""
    if config.scheduler == LOCAL:
        options, count = {**spec["options"], "resources": {GPU: 1}}, config.jobs * config.processes
    else:
        kept = {k: v for k, v in spec["options"].items() if k not in others.job_options(CPU)}
        options, count = {**kept, **config.job_options(GPU)}, config.jobs
    job = {"cls": spec["cls"], "options": options}
    if config.scheduler != LOCAL and config.processes > 1:
        job["group"] = [f"-{k}" for k in range(config.processes)]
    return {f"gpu-{k}": job for k in range(count)}


def _close(what: Any) -> None:
    with suppress(Exception):  # the scheduler may be gone
        what.close(timeout=5)
