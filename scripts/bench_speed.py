"""Compare the speed of two versions of the package in one run, in pairs on one thread.

    python scripts/bench_speed.py --before OTHER --small SMALL --large LARGE --out FILE

``OTHER`` is a checkout of the version to compare with, with its extension built in place
(``python setup.py build_ext --inplace`` there). ``SMALL`` and ``LARGE`` are packed files of
crystals of up to 20 and of more atoms. Each version has a process of its own; they take turns (A B
A B …), so that the load of the machine falls on both alike. The medians of the ratios of
neighbouring turns are what counts; rates are of CPU seconds, which other processes disturb less
than the clock.

Training: whole steps, with noising and multigraphs, on one thread. Sampling: the default sampler,
requests of elements, sites and group. Network: one evaluation of noised crystals without
gradients, its operations counted of the messages that it computes (the older version: of all
edges), beside products of matrices of the same shapes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 4
"""Training steps of a turn."""

REQUESTS = 32
"""Structures of a turn."""


# -- one version, in a process of its own


def operations(network: Any, graph: Any) -> float:
    """Floating-point operations of one evaluation: two for each product that is summed."""
    import torch

    c = network.config
    w, n, features = c.width, c.triplet_width, c.radial + 5
    first = getattr(graph, "first_edge", torch.arange(len(graph.source)))
    source, target = graph.source[first], graph.target[first]
    sends = ~(graph.is_long_range | graph.is_snap)[first]
    sites = len(graph.numbers)
    arriving = torch.bincount(target, minlength=sites)
    leaving = torch.bincount(source[sends], minlength=sites)
    triplets = int((arriving * leaving).sum())
    rows, senders = len(first), int(sends.sum())
    block = rows * (6 * w * w + w * n)
    block += senders * (w * w + w * n + c.radial * w + c.spherical * c.radial * n)
    block += triplets * c.spherical * n
    rest = rows * (2 * w * w + 2 * features * w + 2 * w)
    return 2.0 * (c.blocks * block + rest)


class Worker:
    """What is timed, of the version that is imported here."""

    def __init__(self, model: str, small: Path, large: Path, batch: int) -> None:
        import torch

        from langevin_xtal.dataset.packed import PackedDataset
        from langevin_xtal.diffusion.noising import NoisingConfig, noise_batch
        from langevin_xtal.graph.snapping import all_operations
        from langevin_xtal.model.checkpoint import load_model
        from langevin_xtal.report.bench import requests_like
        from langevin_xtal.sampling.sample import SampleOptions, sample
        from langevin_xtal.train.loop import TrainConfig, Trainer

        torch.set_num_threads(1)
        self.model = load_model(model)
        self.sets = {"small": PackedDataset.load(small), "large": PackedDataset.load(large)}
        config = TrainConfig(
            steps=10**6, batch_size=batch, log_every=10**6, network=self.model.network.config
        )
        self.folder = tempfile.TemporaryDirectory()
        self.trainers = {
            name: Trainer(data, Path(self.folder.name) / name, config, start=self.model)
            for name, data in self.sets.items()
        }
        self.requests = {name: requests_like(data, 512) for name, data in self.sets.items()}
        self.sample, self.options = sample, SampleOptions(workers=1)
        try:
            store_module = importlib.import_module("langevin_xtal.diffusion.crystals")
        except ImportError:  # up to 0.5.0
            store_module = importlib.import_module("langevin_xtal.train.store")
        store = store_module.CrystalStore(self.sets["small"])
        crystals = store.batch(torch.linspace(0, len(store) - 1, batch).long())
        self.noised = noise_batch(
            crystals,
            self.model.levels,
            NoisingConfig(),
            self.model.network.config.graph_settings(),
            all_operations(),
            torch.Generator().manual_seed(0),
        )
        self.torch = torch

    def describe(self) -> dict[str, Any]:
        """The version, and the graph of the network's task."""
        from langevin_xtal import __version__
        from langevin_xtal.report.bench import surroundings

        graph = self.noised.graph
        return {
            "version": __version__,
            "surroundings": surroundings(self.model, self.sets["small"], "cpu"),
            "network": asdict(self.model.network.config),
            "edges": len(graph.source),
            "messages": len(getattr(graph, "first_edge", graph.source)),
            "operations": operations(self.model.network, graph),
        }

    def turn(self, task: str, turn: int) -> tuple[float, float]:
        """How much was done, and in how many CPU seconds."""
        kind, _, name = task.partition(" ")
        work: Callable[[], float]
        if kind == "training":
            trainer = self.trainers[name]

            def work() -> float:
                for step in range(STEPS * turn, STEPS * (turn + 1)):
                    trainer._advance(trainer._prepare(step))
                return float(STEPS * trainer.config.batch_size)
        elif kind == "sampling":
            asked = self.requests[name]
            part = [asked[(REQUESTS * turn + k) % len(asked)] for k in range(REQUESTS)]

            def work() -> float:
                return float(len(self.sample(part, self.model, turn, options=self.options)))
        elif kind == "network":
            given = (self.noised.graph, self.noised.sigma_pos, self.noised.sigma_lat)

            def work() -> float:
                with self.torch.inference_mode():
                    self.model.network(*given)
                return operations(self.model.network, self.noised.graph)
        else:
            shape = len(getattr(self.noised.graph, "first_edge", self.noised.graph.source))
            width = self.model.network.config.width
            left, right = self.torch.ones(shape, width), self.torch.ones(width, width)

            def work() -> float:
                for _ in range(10):
                    self.torch.mm(left, right)
                return 20.0 * shape * width * width

        start = time.process_time()
        amount = work()
        return amount, time.process_time() - start


def serve(arguments: argparse.Namespace) -> None:
    """Answer the tasks of standard input."""
    worker = Worker(arguments.model, arguments.small, arguments.large, arguments.batch)
    answer = sys.stdout
    sys.stdout = sys.stderr
    print(json.dumps(worker.describe()), file=answer, flush=True)
    for line in sys.stdin:
        task, turn = json.loads(line)
        print(json.dumps(worker.turn(task, turn)), file=answer, flush=True)


# -- both


class Version:
    """A worker and what it measured."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve"]
        for name in ("model", "small", "large", "batch"):
            command += [f"--{name}", str(getattr(arguments, name))]
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        self.about = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a version stopped; what it said is above")
        return json.loads(line)

    def rate(self, task: str, turn: int) -> float:
        """Amount per CPU second."""
        assert self.process.stdin is not None
        print(json.dumps([task, turn]), file=self.process.stdin, flush=True)
        amount, seconds = self._read()
        return float(amount / seconds)

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def summary(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"quarter": float(low), "median": float(middle), "three_quarters": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, help="checkout of the older version")
    parser.add_argument("--small", type=Path, required=True, help="packed, up to 20 atoms")
    parser.add_argument("--large", type=Path, required=True, help="packed, more atoms")
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch", type=int, default=32, help="crystals of a training step")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tasks", nargs="*", default=None, help="only these")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.small, arguments.large = arguments.small.resolve(), arguments.large.resolve()
    if arguments.serve:
        serve(arguments)
        return
    if arguments.before is None or arguments.out is None:
        parser.error("give --before and --out")
    here = Path(__file__).resolve().parents[1]
    versions = {
        "before": Version(arguments.before, arguments),
        "after": Version(here, arguments),
    }
    kinds = [f"{kind} {name}" for kind in ("training", "sampling") for name in ("small", "large")]
    result: dict[str, Any] = {
        "command": "python scripts/bench_speed.py "
        + f"--model {arguments.model} --batch {arguments.batch} --pairs {arguments.pairs}",
        "about": {name: version.about for name, version in versions.items()},
        "load_before": os.getloadavg(),
        "tasks": {},
    }
    for task in arguments.tasks or [*kinds, "network", "products"]:
        found: dict[str, list[float]] = {name: [] for name in versions}
        for turn in range(arguments.pairs + 1):
            for name, version in versions.items():
                rate = version.rate(task, turn)
                if turn:  # the first warms up
                    found[name].append(rate)
        ratio = [b / a for a, b in zip(found["before"], found["after"], strict=True)]
        result["tasks"][task] = {
            **{name: summary(rates) for name, rates in found.items()},
            "ratio": summary(ratio),
        }
        one = result["tasks"][task]
        print(
            f"{task}: {one['before']['median']:.4g} to {one['after']['median']:.4g} per CPU "
            f"second, {one['ratio']['median']:.2f} times",
            flush=True,
        )
        result["load_after"] = os.getloadavg()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for version in versions.values():
        version.close()


if __name__ == "__main__":
    main()
