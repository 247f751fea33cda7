"""``langevin-xtal train``: a score model from a packed dataset."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options
from langevin_xtal.cli.terminal import echo
from langevin_xtal.errors import InputError

if TYPE_CHECKING:
    from langevin_xtal.train.loop import LogRow, Trainer


@click.command()
@click.option(
    "--data",
    type=options.LocalPath(),
    help="Packed dataset.  [default: the built-in structure types]",
    metavar="FILE.lxd",
)
@click.option("--validation", type=options.LocalPath(), help="Packed dataset.", metavar="FILE.lxd")
@options.output_folder("run")
@click.option("--size", default="small", show_default=True, type=click.Choice(["small", "base"]))
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=20_000,
    show_default=True,
    help="Of the score network; 0 keeps that of --init and fits only where chains start.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(min=0.0, min_open=True), default=1e-3)
@click.option(
    "--target",
    type=click.Choice(["orbit", "plain"]),
    default="orbit",
    show_default=True,
    help="Noise averaged over equivalent images, or as in the paper.",
)
@click.option("--prior-epochs", type=click.IntRange(min=0), default=20, show_default=True)
@click.option("--ranker-epochs", type=click.IntRange(min=0), default=6, show_default=True)
@click.option(
    "--settings-epochs",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Of the distribution over space groups, cell contents and stoichiometries.",
)
@click.option(
    "--proposal-epochs",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    help="Epochs of the networks that say where chains start, fitted after the last step: the "
    "prior over Wyckoff positions, the ranker of assignments, the proposal of coordinates. With 0 "
    "that of --init is kept.",
)
@click.option(
    "--proposal-members",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Proposals fitted, of which the mean is used.",
)
@click.option(
    "--init",
    metavar="MODEL",
    help="Weights to start from, those of where chains start too: a shipped name or a file.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    default="float32",
    show_default=True,
    help="Of the network's matrix products; tf32 on CUDA only.",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Stop after this time, to go on by the same command.",
    metavar="M",
)
@click.option("--log-every", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--validate-every", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--name", default="model", show_default=True, help="Name stored with the weights.")
@options.seed
@options.device
@options.threads
def train(
    data: Path | None,
    validation: Path | None,
    out: Path,
    size: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    target: str,
    prior_epochs: int,
    ranker_epochs: int,
    settings_epochs: int,
    proposal_epochs: int,
    proposal_members: int,
    init: str | None,
    precision: str,
    max_minutes: float | None,
    log_every: int,
    validate_every: int,
    save_every: int,
    name: str,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Train a score model.

    Writes model.safetensors (to sample from), log.csv and loss.png to the folder, and enough to
    resume: the same command goes on where it stopped, with the same losses as if it had not.

    \b
    Examples:
      langevin-xtal train --data mine.lxd --validation held_out.lxd --out run/
      langevin-xtal sample --model run/model.safetensors --elements Mg,O --sg 225
    """
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.dataset.reference import reference_dataset
    from langevin_xtal.diffusion.noising import NoisingConfig
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.model.device import resolved_device
    from langevin_xtal.model.network import SIZES
    from langevin_xtal.report.pictures import plot_losses
    from langevin_xtal.train.loop import TrainConfig, Trainer
    from langevin_xtal.train.starts import StartEpochs

    if steps == 0 and init is None:
        raise InputError("with --steps 0 there is no network: give one by --init")
    # the next batch is prepared on a core of its own; sharing it costs far more than it gains
    options.set_threads(threads or max(1, (os.cpu_count() or 1) - 1))
    crystals = reference_dataset() if data is None else PackedDataset.load(data)
    held_out = None if validation is None else PackedDataset.load(validation)
    config = replace(
        TrainConfig(),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        warmup=min(500, max(1, steps // 10)),
        log_every=log_every,
        validate_every=validate_every,
        save_every=save_every,
        precision=precision,  # type: ignore[arg-type]
        network=SIZES[size],
        noising=NoisingConfig(target=target),  # type: ignore[arg-type]
    )
    trainer = Trainer(
        crystals,
        out,
        config,
        validation=held_out,
        device=resolved_device(device),
        name=name,
        start=None if init is None else load_model(init),
    )
    if trainer.step and trainer.team.leads:
        echo(f"resuming {out} at step {trainer.step} of {steps}", err=True)
    limit = math.inf if max_minutes is None else 60.0 * max_minutes
    try:
        with options.progress_bar("training", "step") as update:
            for row in trainer.run(limit):
                update(row.step, steps)
                _say(row, trainer)
    finally:
        if trainer.team.leads:
            plot_losses(out / "log.csv", out / "loss.png")
    if trainer.step < steps:
        done = f"{trainer.step} of {steps} steps when the time was over"
        echo(f"{done}; the same command goes on; weights in {out / 'model.safetensors'}")
        return
    epochs = StartEpochs(
        prior=prior_epochs,
        ranker=ranker_epochs,
        settings=settings_epochs,
        proposal=proposal_epochs,
        members=proposal_members,
    )
    before = prior_epochs + ranker_epochs
    planned = {"prior": 0, "ranker": prior_epochs, "settings": before}
    planned["proposal"] = before + settings_epochs
    with options.progress_bar("where chains start", "epoch") as update:
        total = planned["proposal"] + proposal_members * proposal_epochs
        trainer.fit_starts(epochs, lambda part, done, _: update(planned[part] + done, total))
    echo(f"{trainer.step} steps; weights in {out / 'model.safetensors'}")


def _say(row: LogRow, trainer: Trainer) -> None:
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
