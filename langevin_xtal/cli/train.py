"""``langevin-xtal train``: a score model from a packed dataset, or by a recipe."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from langevin_xtal.cli import generators, options
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.fields import names
from langevin_xtal.config.training import TRAINING_PRESETS, EpochsConfig, TrainingConfig
from langevin_xtal.errors import InputError

if TYPE_CHECKING:
    from langevin_xtal.train.loop import LogRow

OTHER = {
    "types": "--structure-types",
    "members": "--proposal-members",
    "settings_members": "--settings-members",
}
EPOCHS = {name: f"--{name}-epochs" for name in names(EpochsConfig, without=tuple(OTHER))} | OTHER
WITH_RECIPE = {"recipe", "data", "scale", "out", "name", "device", "threads", "max_minutes"}
"""Parameters that go with a recipe; it says everything else."""


@dataclass(frozen=True)
class Given:
    """Files to learn from and to start from."""

    files: tuple[Path, ...]
    validation: Path | None
    init: str | None


@click.command()
@click.option(
    "--data",
    "files",
    type=options.LocalPath(),
    multiple=True,
    help="Packed dataset.  [default: the built-in structure types]  With --recipe, the recipe's "
    "sources, each as NAME=FILE, or one file that stands for all of them.",
    metavar="FILE.lxd",
)
@click.option("--validation", type=options.LocalPath(), help="Packed dataset.", metavar="FILE.lxd")
@options.output_folder("run")
@click.option(
    "--recipe",
    help="Make a model by a recipe, card included: small, mp20, mp20-properties, or a .toml file.",
    metavar="NAME",
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    default=1.0,
    show_default=True,
    help="With --recipe: share of its steps and epochs, to try it out.",
)
@generators.option("Fit")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="With --generator: times that every crystal is seen.  [default: the generator's]",
    metavar="N",
)
@options.preset_of(
    TRAINING_PRESETS,
    "Settings by name, which options change. paper: plain targets, its noise levels, learning "
    "rate and mean lattice estimate.",
)
@options.of_config(TrainingConfig)
@options.of_config(EpochsConfig, flags=EPOCHS)
@click.option(
    "--init",
    metavar="MODEL",
    help="Weights to start from, those of where chains start too: a shipped name or a file.",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Stop after this time, to go on by the same command.",
    metavar="M",
)
@click.option(
    "--name",
    help="Name stored with the weights.  [default: model; with --recipe, the recipe's]",
)
@options.seed
@options.device
@options.threads
@options.gathered(Given, "files", "validation", "init", into="given")
def train(
    given: Given,
    out: Path,
    recipe: str | None,
    scale: float,
    generator: str | None,
    epochs: int | None,
    max_minutes: float | None,
    name: str | None,
    seed: int,
    device: str,
    threads: int | None,
    **settings: Any,
) -> None:
    """Train a score model.

    Writes model.safetensors (to sample from), log.csv and loss.png to the folder, and enough to
    resume: the same command goes on where it stopped, with the same losses as if it had not. With
    --recipe, every fit has a folder of its own, and model.safetensors and card.md come last. With
    --generator, another published generator is fitted, which leaves generator.safetensors.

    \b
    Examples:
      langevin-xtal train --data mine.lxd --validation held_out.lxd --out run/
      langevin-xtal sample --model run/model.safetensors --elements Mg,O --sg 225
      langevin-xtal train --recipe small --data mine.lxd --out mine/
      langevin-xtal train --generator gemsdiff --data mine.lxd --out gemsdiff/
    """
    limit = math.inf if max_minutes is None else 60.0 * max_minutes
    generators.check_apart(generator, epochs=epochs)
    if generator is not None:
        generators.train(
            generator, given.files, out, epochs=epochs, seed=seed, threads=threads, limit=limit
        )
        return
    # the next batch is prepared on a core of its own; sharing it costs far more than it gains
    options.set_threads(threads or max(1, (os.cpu_count() or 1) - 1))
    if recipe is not None:
        _check_recipe(click.get_current_context())
        _by_recipe(recipe, given.files, out, scale, device, name, limit)
        return
    if scale != 1.0:
        raise InputError("--scale is of recipes; name one by --recipe")
    if len(given.files) > 1:
        raise InputError(
            f"{len(given.files)} files were given by --data; give one (data join puts them "
            "together), or --recipe"
        )
    config = TrainingConfig(**{k: settings[k] for k in names(TrainingConfig)})
    of_parts = {field: settings[flag[2:].replace("-", "_")] for field, flag in EPOCHS.items()}
    if config.steps == 0 and given.init is None:
        raise InputError("with --steps 0 there is no network: give one by --init")
    _plainly(config, of_parts, given, out, device, name or "model", seed, limit)


def _plainly(
    config: TrainingConfig,
    epochs: dict[str, int],
    given: Given,
    out: Path,
    device: str,
    name: str,
    seed: int,
    limit: float,
) -> None:
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.dataset.reference import reference_dataset
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.model.device import resolved_device
    from langevin_xtal.report.pictures import plot_losses
    from langevin_xtal.train.loop import TrainConfig, Trainer
    from langevin_xtal.train.parts import PARTS, PartEpochs

    crystals = PackedDataset.load(given.files[0]) if given.files else reference_dataset()
    trainer = Trainer(
        crystals,
        out,
        TrainConfig.of(config, seed=seed),
        validation=None if given.validation is None else PackedDataset.load(given.validation),
        device=resolved_device(device),
        name=name,
        start=None if given.init is None else load_model(given.init),
    )
    steps = config.steps
    if trainer.step and trainer.team.leads:
        echo(f"resuming {out} at step {trainer.step} of {steps}", err=True)
    end = time.perf_counter() + limit
    try:
        with options.progress_bar("training", "step") as update:
            for row in trainer.run(limit):
                update(row.step, steps)
                _say(row)
    finally:
        if trainer.team.leads:
            plot_losses(out / "log.csv", out / "loss.png")
    if trainer.step < steps:
        done = f"{trainer.step} of {steps} steps when the time was over"
        echo(f"{done}; the same command goes on; weights in {out / 'model.safetensors'}")
        return
    chosen = PartEpochs(**epochs)
    before, total = {}, 0
    for part in PARTS:
        before[part] = total
        total += chosen.planned(part)
    with options.progress_bar("where chains start", "epoch") as update:
        complete = trainer.fit_parts(
            chosen,
            lambda part, done, _: update(before[part] + done, total),
            end - time.perf_counter(),
        )
    over = "" if complete else ", where chains start not fitted when the time was over"
    again = "" if complete else "; the same command goes on"
    echo(f"{trainer.step} steps{over}{again}; weights in {out / 'model.safetensors'}")


def _check_recipe(context: click.Context) -> None:
    """Refuse options of which the recipe has its own."""
    for param in context.command.params:
        given = context.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE
        if given and param.name not in WITH_RECIPE | {"files"}:
            raise InputError(
                f"{param.opts[0]} does not go with --recipe, which says it for every fit; leave "
                "it out, or change a copy of the recipe"
            )


def _by_recipe(
    name: str,
    files: Sequence[Path],
    out: Path,
    scale: float,
    device: str,
    model_name: str | None,
    limit: float,
) -> None:
    from langevin_xtal.model.device import resolved_device
    from langevin_xtal.train.recipe import (
        CARD,
        RecipeRun,
        load_recipe,
        named_files,
        prepared,
    )

    recipe = load_recipe(name)
    if not files:
        sources = "; ".join(f"{k}: {source.what}" for k, source in recipe.sources.items())
        raise InputError(
            f"recipe {recipe.name} learns from your files; give --data NAME=FILE for each of its "
            f"sources ({sources}), or one --data FILE"
        )
    named = named_files(recipe, [str(file) for file in files])
    data = prepared(recipe, named)
    if data.note:
        echo(data.note, err=True)
    given = " ".join(f"--data {source}={p.name}" if source else f"--data {p.name}"
                     for source, p in named.items())  # fmt: skip
    share = f" --scale {scale:g}" if scale != 1.0 else ""
    run = RecipeRun(
        recipe,
        data,
        out,
        scale=scale,
        device=resolved_device(device),
        name=model_name,
        command=f"langevin-xtal train --recipe {Path(name).stem} {given}{share}",
    )
    with options.stage_bars() as progress:
        model = run.run(max_seconds=limit, on_row=lambda row, _: _say(row), progress=progress)
    if model is None:
        if run.leads:
            echo("the time was over; the same command goes on")
        return
    echo(f"{model!r} in {out / 'model.safetensors'}; its card in {out / CARD}")


def _say(row: LogRow) -> None:
    """A line for the log where there is no terminal, and above the bar where there is one."""
    from tqdm import tqdm

    checked = ""
    if row.validation_position == row.validation_position:
        checked = (
            f"  validation: position {row.validation_position:.3f} "
            f"lattice {row.validation_lattice:.3f}"
        )
    tqdm.write(
        f"step {row.step:6d}  epoch {row.epoch:6.2f}  {row.crystals_per_second:5.0f} crystals/s  "
        f"position {row.position:.3f}  lattice {row.lattice:.3f}{checked}"
    )
