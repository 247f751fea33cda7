"""``langevin-xtal evaluate``: how good a set of structures, or a model, is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import generators, options
from langevin_xtal.cli.evaluation_controls import CONTROLS
from langevin_xtal.cli.evaluation_run import EvaluationRun
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.evaluation import (
    FINGERPRINTS,
    EvaluateOptions,
    SampledConfig,
)
from langevin_xtal.config.sampling import PRESET_HELP, PRESETS, SamplingConfig
from langevin_xtal.errors import InputError

if TYPE_CHECKING:
    from langevin_xtal.evaluation.report import Report

SAMPLING = ("positions", "assignment_temperature", "start", "proposals", "proposal_temperature",
            "proposal_noise", "chains", "sampler")  # fmt: skip


class Names(options.ParamType):
    """``a,b`` to a tuple of known names; ``none`` to nothing."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = tuple(known)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Names in the order given."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if names == ("none",):
            return ()
        for name in names:
            if name not in self.known:
                title = getattr(param, "name", "option")
                raise InputError(
                    f"--{title}: {name!r} is not known; give none, or some of "
                    f"{', '.join(self.known)}"
                )
        return names


@dataclass(frozen=True, kw_only=True)
class Asked(SampledConfig):
    """What is compared with what, as the command line says it."""

    samples: tuple[Path, ...]
    reference: Path
    training: Path | None
    models: tuple[str, ...]
    generator: str | None
    weights: Path | None
    controls: tuple[str, ...] | None
    groups: str | None
    chosen_targets: str
    seed: int
    workers: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.samples and not self.models and self.generator is None:
            raise InputError(
                "nothing to evaluate: give files or folders of structures, or --model"
            )
        generators.check_apart(self.generator, weights=self.weights)


@click.command()
@click.argument("samples", nargs=-1, type=options.LocalPath())
@click.option(
    "--reference",
    required=True,
    type=options.LocalPath(),
    help="Held-out crystals to compare with: packed data, or structures in any format.",
    metavar="FILE",
)
@click.option(
    "--training",
    type=options.LocalPath(),
    help="Training data: for novelty, templates and the ceiling.",
    metavar="FILE",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Sample this model for the targets and evaluate what it gives; may be repeated.",
    metavar="MODEL",
)
@generators.option("Sample and evaluate")
@generators.weights
@options.of_config(SampledConfig)
@click.option(
    "--controls",
    type=Names(tuple(CONTROLS)),
    help="Sets to print beside: some of " + ", ".join(CONTROLS) + "; or none.  [default: random, "
    "and with --training template and training; with --mode composition and --training "
    "template-composition and training; with --mode de-novo training]",
    metavar="LIST",
)
@click.option(
    "--sg",
    "groups",
    help="Keep only reference crystals of these groups, named as for sample.  [default: 16-230, "
    "as the paper, with --model and --mode sites, else all]",
    metavar="GROUPS",
)
@click.option(
    "--targets",
    "chosen_targets",
    default="all",
    show_default=True,
    help="Crystals that SAMPLES are to predict, those without a prediction counting as misses: "
    "all of the reference, named (only those that SAMPLES name), or a file of identifiers, one "
    "a line.",
    metavar="all|named|FILE",
)
@click.option("--relax", is_flag=True, help="Relax the samples too: stability, S.U.N., recovery.")
@options.of_config(EvaluateOptions, "relax_trials")
@click.option(
    "--fingerprints",
    type=Names(FINGERPRINTS),
    default=",".join(FINGERPRINTS),
    show_default=True,
    help="What coverage and Fréchet distances are taken on; none is much faster.",
    metavar="LIST",
)
@options.preset_of(PRESETS, PRESET_HELP)
@options.of_config(SamplingConfig, *SAMPLING)
@click.option(
    "--levels",
    help="Noise levels; several (10,25,50) give a column each.  [default: the sampler's]",
    metavar="LIST",
)
@options.of_config(SamplingConfig, "steps", "lattice_estimate")
@options.seed
@options.workers
@options.cache_folder(
    "Folder for fingerprints, matches and relaxations, shared by all evaluations."
)
@options.output_folder("evaluation")
@options.on_engine
@options.gathered(Asked, *(field.name for field in dataclasses.fields(Asked)), into="asked")
def evaluate(
    asked: Asked,
    relax: bool,
    relax_trials: int,
    fingerprints: tuple[str, ...],
    levels: str | None,
    cache: Path | None,
    out: Path,
    **sampling: object,
) -> None:
    """Evaluate SAMPLES, and models, against held-out crystals.

    SAMPLES are structures in any format or folders of them (see data prepare), the store of a
    search, or packed datasets, a column each. A structure whose identifier (the file's name, the
    id column) is ID or ID__K, with ID a crystal of the reference, is a prediction of that
    crystal, the K-th; match rates over all crystals of the reference are then printed, never
    without a control. Everything slow is cached, so an interrupted evaluation goes on where it
    stopped.

    \b
    Examples:
      langevin-xtal evaluate candidates/ --reference held_out.lxd --training train.lxd
      langevin-xtal evaluate --model small --reference held_out.lxd --training train.lxd --k 20
      langevin-xtal evaluate --model small --mode formula --reference held_out.lxd --k 20
      langevin-xtal evaluate --model small --mode composition --reference held_out.lxd --k 20
      langevin-xtal evaluate --model small --mode de-novo --reference held_out.lxd --n 10000
      langevin-xtal evaluate --model small --reference held_out.lxd --levels 10,25,50,100
      langevin-xtal evaluate --generator gemsdiff --weights gemsdiff/generator.safetensors
      --reference held_out.lxd --training train.lxd
    """
    from langevin_xtal.evaluation.cache import default_folder
    from langevin_xtal.evaluation.protocol import evaluate as judge
    from langevin_xtal.report.evaluation import plot_evaluation

    began = time.perf_counter()
    run = EvaluationRun(asked, out)
    for name in asked.models:
        run.add_model(name, levels, sampling)
    run.add_generator()
    relaxed = [s.label for s in run.sets] if relax else []
    run.add_controls()
    if "random-relaxed" in run.controls:
        relaxed.append("random")
    chosen = EvaluateOptions(
        features=fingerprints,
        relax=relaxed,
        relax_trials=relax_trials,
        per_composition=run.is_sampled and run.mode == "composition",
        workers=asked.workers,
        cache=cache or default_folder(),
    )
    with options.stage_bars() as progress:
        report = judge(
            run.sets,
            run.data,
            training=run.known,
            targets=run.targets if run.is_sampled else None,
            evaluations=run.evaluations,
            options=chosen,
            progress=progress,
        )
    report.settings |= run.record() | {"seconds": round(time.perf_counter() - began, 1)}
    report.notes += run.all_notes()
    report.save(out)
    pictures = plot_evaluation(report, out)
    echo(report.table())
    for column in report.columns:
        if "predicted" in column.summary:
            found, count_of_targets = column.summary["predicted"], column.summary["targets"]
            echo(f"{column.label}: predictions of {found} of {count_of_targets} targets")
    _list_missing(report)
    echo(
        f"\n{time.perf_counter() - began:.0f} s; every structure's numbers are in "
        f"{out / 'evaluation.json'}; pictures: {', '.join(p.name for p in pictures)}"
    )


def _list_missing(report: Report) -> None:
    """How many structures are missing or without a fingerprint, by reason."""
    from collections import Counter

    for column in report.columns:
        reasons = Counter(entry["reason"].split(":")[0] for entry in column.missing)
        for feature, failed in column.failures.items():
            reasons.update(f"no {feature}" for _ in failed)
        for reason, number in reasons.most_common():
            echo(f"{column.label}: {number} × {reason}")
