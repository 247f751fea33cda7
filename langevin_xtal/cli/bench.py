"""``langevin-xtal bench``: how fast this machine is, and where the time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.sampling import SamplingConfig
from langevin_xtal.errors import InputError
from langevin_xtal.files import check_target, write_text

if TYPE_CHECKING:
    from langevin_xtal.report.instruments import Rate
    from langevin_xtal.report.measurements import (
        BenchReport,
        GraphPart,
        ProfilePart,
        SamplePart,
        TrainPart,
    )


class Stages(options.ParamType):
    """``graph,train`` to a tuple of stages."""

    name = "stages"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Stages as given, each once; the names are checked where they are measured."""
        if isinstance(value, tuple):
            return value
        stages = tuple(dict.fromkeys(part.strip() for part in str(value).split(",")))
        if not any(stages):
            raise InputError("--stage: no stage was given; give some of graph, train, sample")
        return stages


@click.command()
@options.model
@click.option(
    "--stage",
    "stages",
    type=Stages(),
    default="graph,train,sample",
    show_default=True,
    metavar="LIST",
    help="What to measure: graph, train, sample; and profile, the arithmetic and bytes of each "
    "stage beside what the machine can do.",
)
@click.option(
    "--data",
    type=options.LocalPath(),
    help="Packed dataset.  [default: the built-in structure types]",
    metavar="FILE.lxd",
)
@options.of_config(SamplingConfig, "sampler", "levels", "steps")
@click.option("--batch-size", type=click.IntRange(1, 100_000), default=64, show_default=True)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Measurements of which the median is shown.",
)
@click.option(
    "--json",
    "out",
    type=options.LocalPath(dir_okay=False),
    help="Write all numbers to this file.",
    metavar="FILE",
)
@options.device
@options.threads
def bench(
    model: str,
    stages: tuple[str, ...],
    data: Path | None,
    sampler: str,
    levels: int | None,
    steps: int | None,
    batch_size: int,
    repeat: int,
    out: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Measure graph building, training and sampling.

    Rates are medians, with the smallest and largest in brackets, of the product as it runs. Shares
    of time come from one more run with every stage on its own. Needs no network and no data.

    \b
    Examples:
      langevin-xtal bench
      langevin-xtal bench --stage sample --threads 1 --batch-size 16 --json bench.json
    """
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.dataset.reference import reference_dataset
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.report.bench import measure
    from langevin_xtal.sampling.samplers import make_sampler

    if out is not None and not out.resolve().parent.is_dir():
        raise InputError(f"--json: {out.parent} is not a folder; give a file in one that exists")
    if out is not None:
        check_target(out)
    engine = make_sampler(sampler, levels, steps)
    crystals = reference_dataset() if data is None else PackedDataset.load(data)
    with options.progress_bar("measuring", "stage") as update:
        report = measure(
            load_model(model),
            crystals,
            stages=stages,
            device=device,
            batch_size=batch_size,
            repeat=repeat,
            threads=threads,
            sampler=engine,
            progress=update,
        )
    for line in table(report):
        echo(line)
    if out is not None:
        write_text(out, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        echo(f"all numbers in {out}")


def table(report: BenchReport) -> list[str]:
    """The report as lines for the terminal."""
    lines = [
        f"langevin-xtal {report['langevin_xtal']}, torch {report['torch']}, "
        f"Python {report['python']}; {report['device_name']}, {report['cores']} cores",
        f"model {report['model']} ({report['weights']}); {report['data']['crystals']} crystals; "
        f"batches of {report['batch_size']}; median [smallest, largest] of {report['repeat']}",
    ]
    if "graph" in report:
        lines += ["", *_graph_lines(report["graph"])]
    if "train" in report:
        train = report["train"]
        lines += ["", f"training, {train['threads']} torch threads and one that prepares batches"]
        lines += [
            _rate("crystals/s", train["crystals_per_second"]),
            _rate("s/step", train["seconds_per_step"]),
            *_closing(train),
        ]
    if "sample" in report:
        part = report["sample"]
        lines += [
            "",
            f"sampling, {part['workers']} workers, {part['sampler']}",
            f"  {part['candidates']} candidates from {part['requests']} requests in "
            f"{part['attempts']} attempts, {part['evaluations_per_structure']:.0f} network "
            "evaluations per structure",
        ]
        lines += [
            _rate("structures/s", part["structures_per_second"]),
            _rate("s/structure", part["seconds_per_structure"]),
            _rate("evaluations/s", part["evaluations_per_second"]),
            *_closing(part),
        ]
    if "profile" in report:
        lines += ["", *_profile_lines(report["profile"])]
    return lines


def _profile_lines(part: ProfilePart) -> list[str]:
    flops, bandwidth = part["limits"]["flops"] / 1e9, part["limits"]["bandwidth"] / 1e9
    lines = [
        f"profile on one thread, where products reach {flops:,.0f} GFLOP/s and copies "
        f"{bandwidth:,.0f} GB/s",
        f"  {'stage':24s} {'s':>8s} {'share':>6s} {'GFLOP':>8s} {'GB':>8s} {'calls':>7s} "
        f"{'bound by':>10s} {'of limit':>8s}",
    ]
    for kind, rows in (("train", part["train"]), ("sample", part["sample"])):
        for row in rows:
            lines.append(
                f"  {kind + ': ' + row['stage']:24s} {row['seconds']:8.4f} {row['share']:6.1%} "
                f"{row['flops'] / 1e9:8.3f} {row['bytes'] / 1e9:8.3f} {row['operations']:7d} "
                f"{row['bound_by']:>10s} {row['share_of_limit']:8.1%}"
            )
    return [*lines, f"  peak memory {_size(part['peak_memory'])}"]


def _graph_lines(part: GraphPart) -> list[str]:
    lines = [
        f"multigraphs of {part['crystals']} crystals noised by σ, one thread",
        f"  {'builder':10s} {'σ [Å]':>6s} {'edges/site':>10s}  "
        f"{'crystals/s':32s} {'edges/s':>10s}",
    ]
    for row in part["rows"]:
        lines.append(
            f"  {row['backend']:10s} {row['sigma']:6.3f} {row['edges_per_site']:10.1f}  "
            f"{_spread(row['crystals_per_second']):32s} "
            f"{_number(row['edges_per_second']['median']):>10s}"
        )
    return [*lines, f"  peak memory {_size(part['peak_memory'])}"]


def _rate(unit: str, rate: Rate) -> str:
    return f"  {unit:16s} {_spread(rate)}"


def _closing(part: TrainPart | SamplePart) -> list[str]:
    shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in part["shares"].items())
    return [f"  time             {shares}", f"  peak memory      {_size(part['peak_memory'])}"]


def _spread(value: Rate) -> str:
    low, high = _number(value["low"]), _number(value["high"])
    return f"{_number(value['median'])} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"
