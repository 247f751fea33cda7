"""What a GPU is used for, in steps that take minutes each and go on where they stopped.

    python scripts/gpu_session.py build tests bench --data mp20_train.lxd --out results
    python scripts/gpu_session.py train --minutes 8 --total-minutes 16 --data mp20_train.lxd
    python scripts/gpu_session.py profile starts collect --data mp20_train.lxd --out results

Run from the root of a checkout. Needs torch, numpy, scipy, click, tqdm, safetensors, matplotlib,
none of the packages that read crystals. Steps:

build    the C++ multigraph, for comparison; without a compiler numba stands in
tests    pytest -m cuda
bench    multigraphs, training (builders, precisions, batch sizes) and sampling, small and base
train    base, for --minutes of --total-minutes; say it again to go on
profile  where the time goes, arithmetic and bytes, waits for the host; operations by time
starts   the proposal of the trained network, on the device; prior and ranker beside it; say it
         again to go on
collect  copies what is worth keeping to --out

Everything lies in --work until it is collected; what is measured already is not measured again.
``--rehearse`` goes through all of it on the CPU in minutes, with numbers that mean nothing, and
with the packages hidden that are not to be expected.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HIDDEN = ("ase", "chgnet", "matminer", "phonopy", "pymatgen", "smact", "spglib")

HIDE = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HIDDEN!r}:
            raise ImportError(name + " is hidden in a rehearsal")

sys.meta_path.insert(0, Hidden())
"""

RUN = "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


@dataclass(frozen=True)
class Session:
    """Settings of all steps."""

    work: Path
    out: Path
    data: Path | None
    validation: Path | None
    minutes: float
    total_minutes: float
    batch_size: int
    precision: str
    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def size(self) -> str:
        return "small" if self.rehearse else "base"

    def module(self, *arguments: str, minutes: float) -> int:
        """Run a module in a process of its own, its output here and in a file; its exit status."""
        code = (HIDE if self.rehearse else "") + RUN
        command = [sys.executable, "-c", code, *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        print("+", " ".join(arguments), flush=True)
        try:
            done = subprocess.run(
                command,
                env=environment,
                timeout=60 * minutes,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            print(_text(error.stdout)[-2000:], f"\nstopped after {minutes:g} minutes", flush=True)
            return 124
        with (self.work / f"{arguments[0].split('.')[0]}.log").open("a") as log:
            log.write(done.stdout)
        print(done.stdout[-3000:], flush=True)
        return done.returncode

    def crystals(self) -> Any:
        """The training set."""
        from langevin_xtal.dataset.packed import PackedDataset
        from langevin_xtal.dataset.reference import reference_dataset

        return reference_dataset() if self.data is None else PackedDataset.load(self.data)

    def model(self, size: str) -> Any:
        """The shipped small; as base, with the network trained here or else a random one."""
        import torch

        from langevin_xtal.model.checkpoint import load_model
        from langevin_xtal.model.network import SIZES, EdgeNetwork

        shipped = load_model("small")
        if size == "small":
            network, name = shipped.network, "small"
        elif (self.work / "run" / "model.safetensors").exists():
            network, name = load_model(self.work / "run" / "model.safetensors").network, "trained"
        else:
            torch.manual_seed(0)
            network, name = EdgeNetwork(SIZES[size]).eval().requires_grad_(False), "random"
        return replace(shipped, name=f"{size}, {name}", network=network.to(self.device))

    def record(self, name: str) -> Record:
        """The measurements of a step so far."""
        return Record(self.work / f"{name}.json")


class Record:
    """Measurements by name, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, key: str, run: Callable[[], Any]) -> Any:
        """The result of ``run``, or what it gave before; an error is noted and not fatal."""
        if key not in self.found:
            start = time.perf_counter()
            try:
                self.found[key] = run()
            except Exception as error:  # the others are worth having
                text = f"{type(error).__name__}: {error}".split("\n")[0]
                print(f"  {key}: {text}", flush=True)
                return {"error": text}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=1) + "\n")
            part.replace(self.path)
            print(f"  {key}: {time.perf_counter() - start:.1f} s", flush=True)
        return self.found[key]


# -- steps


def build(session: Session) -> int:
    """The C++ multigraph, where there is a compiler."""
    from importlib.util import find_spec

    if find_spec("langevin_xtal.graph._multigraph") is None and not session.rehearse:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        print("compiler:", subprocess.run(command).returncode)
    from langevin_xtal.graph import available

    print("builders:", ", ".join(available()))
    return 0


def tests(session: Session) -> int:
    """The tests that need a device; in a rehearsal those that stand in for them."""
    chosen = ["tests/test_cuda.py", "-m", "cuda", "-q", "-rs"]
    if session.rehearse:
        chosen = ["tests/test_device.py", "-q", "-k", "TestNoising or TestQuestions"]
    return session.module("pytest", "-p", "no:cacheprovider", "-o", "addopts=", *chosen, minutes=9)


def bench(session: Session) -> int:
    """Rates of everything, the fastest builders, precisions and batch sizes to be chosen from."""
    from langevin_xtal.report import bench as measuring

    data, record, device = session.crystals(), session.record("bench"), session.device
    sizes = ("small",) if session.rehearse else ("small", "base")
    batches = (8,) if session.rehearse else (64, 256, 1024)
    precisions = ("float32", "bf16") if session.rehearse else ("float32", "tf32", "bf16")
    first = session.model("small")
    record.measure("machine", lambda: measuring.surroundings(first, data, device))
    for size in sizes:
        model = session.model(size)
        few = {"device": device, "repeat": 2 if session.rehearse else 4, "threads": None}

        def train(model: Any = model, few: Any = few, **chosen: Any) -> Any:
            return measuring.measure_training(model, data, **few, **chosen)

        for batch in batches:
            record.measure(f"{size} train {batch} torch", lambda b=batch: train(batch_size=b))
        middle = batches[len(batches) // 2]
        record.measure(
            f"{size} train {middle} host", lambda b=middle: train(batch_size=b, builder="host")
        )
        for precision in precisions[1:]:
            record.measure(
                f"{size} train {middle} torch {precision}",
                lambda b=middle, p=precision: train(batch_size=b, precision=p),
            )
        for batch in batches:
            record.measure(
                f"{size} sample {batch}, without checks",
                lambda b=batch, m=model: chains(m, data, b, device),
            )
    record.measure("graph", lambda: measuring.measure_graph(first, data, device=device, repeat=3))
    for key, value in record.found.items():
        for rate in ("crystals_per_second", "structures_per_second"):
            if rate in value:
                each = value[rate]
                print(f"{key:40s} {each['median']:10.1f} [{each['low']:.1f}, {each['high']:.1f}]")
    return 0


def train(session: Session) -> int:
    """The large network, so many steps as fit in the time planned for all calls together."""
    plan = session.work / "plan.json"
    if not plan.exists():
        rate = _training_rate(session)
        steps = max(20, int(60 * session.total_minutes * rate / session.batch_size))
        plan.write_text(json.dumps({"steps": steps, "rate": rate}))
    steps = json.loads(plan.read_text())["steps"]
    arguments = [
        "--out",
        str(session.work / "run"),
        "--size",
        session.size,
        "--name",
        session.size,
    ]
    arguments += ["--device", session.device, "--steps", str(steps)]
    arguments += ["--batch-size", str(session.batch_size), "--precision", session.precision]
    arguments += ["--max-minutes", str(session.minutes), "--save-every", "2000"]
    arguments += ["--prior-epochs", "0", "--ranker-epochs", "0", "--proposal-epochs", "0"]
    for option, path in (("--data", session.data), ("--validation", session.validation)):
        arguments += [option, str(path)] if path is not None else []
    return session.module("langevin_xtal", "train", *arguments, minutes=session.minutes + 2)


def profile(session: Session) -> int:
    """Stages against the machine's limits, waits for the host, operations by time."""
    from langevin_xtal.cli.bench import table
    from langevin_xtal.report import bench as measuring

    data, record, device = session.crystals(), session.record("profile"), session.device
    batch = 8 if session.rehearse else session.batch_size
    text = []
    for size in ("small",) if session.rehearse else ("small", "base"):
        model = session.model(size)

        def stages(model: Any = model) -> Any:
            return measuring.measure(
                model,
                data,
                stages=["profile"],
                device=device,
                batch_size=batch,
                repeat=1 if session.rehearse else 3,
            )

        with _no_checks():
            found = record.measure(f"{size} stages", stages)
        if "profile" in found:
            text += [f"{size}, batches of {batch}", *table(found), ""]
        operations = record.measure(f"{size} operations", lambda m=model: by_time(m, data, batch))
        text += [str(operations), ""]
    (session.work / "profile.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return 0


def starts(session: Session) -> int:
    """The fits of where chains start, with the network trained above."""
    model = session.work / "run" / "model.safetensors"
    if not model.exists():
        print(f"{model} is not there; train first")
        return 1
    epochs = ("1", "1", "1") if session.rehearse else ("12", "4", "20")
    arguments = ["--steps", "0", "--init", str(model), "--out", str(session.work / "starts")]
    arguments += ["--size", session.size, "--name", session.size, "--device", session.device]
    for option, count in zip(("--prior", "--ranker", "--proposal"), epochs, strict=True):
        arguments += [f"{option}-epochs", count]
    arguments += ["--data", str(session.data)] if session.data is not None else []
    return session.module("langevin_xtal", "train", *arguments, minutes=9)


def collect(session: Session) -> int:
    """What is worth keeping, side by side."""
    session.out.mkdir(parents=True, exist_ok=True)
    kept = {
        "bench.json": "bench.json",
        "profile.json": "profile.json",
        "profile.txt": "profile.txt",
        "pytest.log": "pytest.log",
        "run/model.safetensors": "model.safetensors",
        "run/state.safetensors": "state.safetensors",
        "run/log.csv": "log.csv",
        "starts/model.safetensors": "model_with_starts.safetensors",
    }
    for source, name in kept.items():
        if (session.work / source).exists():
            shutil.copyfile(session.work / source, session.out / name)
            print(f"{name}: {(session.out / name).stat().st_size / 2**20:.2f} MiB")
    return 0


STEPS = {f.__name__: f for f in (build, tests, bench, train, profile, starts, collect)}


# -- measurements


def chains(model: Any, data: Any, batch_size: int, device: str) -> dict[str, Any]:
    """Structures per second up to the checks of the finished ones, which need spglib."""
    from langevin_xtal.report import bench as measuring
    from langevin_xtal.sampling.sample import SampleOptions, sample_batches

    asked = measuring.requests_like(data, batch_size)
    options = SampleOptions(batch_size=batch_size, workers=1, attempts=1)
    synchronise = measuring.synchroniser(device)
    seconds = []
    with _no_checks():
        for _ in range(4):
            synchronise()
            start = time.perf_counter()
            list(sample_batches(asked, model, device=device, options=options))
            synchronise()
            seconds.append(time.perf_counter() - start)
    rates = sorted(len(asked) / s for s in seconds[1:])  # the first fills caches
    return {
        "structures_per_second": {"median": rates[1], "low": rates[0], "high": rates[2]},
        "sampler": repr(options.sampler),
    }


def by_time(model: Any, data: Any, batch_size: int) -> str:
    """Operations of three training steps by the time they take, and how often the host waits."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    from langevin_xtal.train.loop import TrainConfig, Trainer

    device = next(model.network.parameters()).device.type
    on_cuda = device == "cuda"
    config = TrainConfig(steps=100, batch_size=batch_size, network=model.network.config)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with TemporaryDirectory() as folder:
        trainer = Trainer(data, Path(folder), config, device=device, builder="torch")
        for step in range(2):
            trainer._advance(trainer._prepare(step))
        waits = Counter[str]()
        if on_cuda:
            with _counted_waits(waits):
                trainer._advance(trainer._prepare(2))
        with recording(activities=activities) as recorded:
            for step in range(3, 6):
                trainer._advance(trainer._prepare(step))
            if on_cuda:
                torch.cuda.synchronize()
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    rows = recorded.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60)
    lines = [f"{count:4d} {place}" for place, count in waits.most_common()]
    return "\n".join([f"waits for the host in one step: {sum(waits.values())}", *lines, rows])


@contextmanager
def _counted_waits(waits: Counter[str]) -> Iterator[None]:
    """By the line that waits."""
    import torch

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits.update(
        f"{Path(w.filename).name}:{w.lineno}" for w in found if "synchroniz" in str(w.message)
    )


@contextmanager
def _no_checks() -> Iterator[None]:
    """Without spglib no finished structure can be checked: leave that out of sampling."""
    from langevin_xtal.sampling import batches
    from langevin_xtal.sampling.postprocess import Rejection

    def unchecked(request: Any, *_: Any, index: int, attempt: int, **__: Any) -> Rejection:
        return Rejection(request, index, attempt, "not checked")

    genuine = batches.finish
    batches.finish = unchecked  # type: ignore[assignment]
    try:
        yield
    finally:
        batches.finish = genuine


def _training_rate(session: Session) -> float:
    """Crystals per second with the settings asked for."""
    from langevin_xtal.report import bench as measuring

    found = measuring.measure_training(
        session.model(session.size),
        session.crystals(),
        device=session.device,
        batch_size=session.batch_size,
        repeat=3,
        threads=None,
        precision=session.precision,  # type: ignore[arg-type]
    )
    return float(found["crystals_per_second"]["median"])


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def main() -> None:
    """Go through the steps asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="[default: all]")
    parser.add_argument("--data", type=Path, help="packed crystals to train on")
    parser.add_argument("--validation", type=Path, help="packed crystals to validate with")
    parser.add_argument("--work", type=Path, default=Path("out/gpu"), help="[default: out/gpu]")
    parser.add_argument("--out", type=Path, default=Path("out/gpu/results"))
    parser.add_argument("--minutes", type=float, default=7.0, help="of training in this call")
    parser.add_argument("--total-minutes", type=float, default=14.0, help="in all calls")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="float32", help="float32, tf32 or bf16")
    parser.add_argument("--rehearse", action="store_true", help="all of it, on the CPU")
    given = parser.parse_args()
    unknown = sorted(set(given.steps) - set(STEPS))
    if unknown:
        parser.error(f"step {unknown[0]!r} is not known; give some of {', '.join(STEPS)}")
    for path in (given.data, given.validation):
        if path is not None and not path.exists():
            parser.error(f"{path} is not there; give a file made by langevin-xtal data prepare")
    chosen = {k: v for k, v in vars(given).items() if k != "steps"}
    sys.path.insert(0, str(Path.cwd()))
    if given.rehearse:
        hide()
        chosen |= {"batch_size": 8, "minutes": 0.1, "total_minutes": 0.2}
    session = Session(**chosen)
    session.work.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in given.steps or STEPS:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        results[name] = STEPS[name](session)
        print(
            f"== {name}: status {results[name]}, {time.perf_counter() - start:.0f} s", flush=True
        )
    sys.exit(max(results.values()))


def hide() -> None:
    """Hide here what is hidden from the processes started."""

    class Hidden:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] in HIDDEN:
                raise ImportError(f"{name} is hidden in a rehearsal")

    sys.meta_path.insert(0, Hidden())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
