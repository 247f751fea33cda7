"""Denoising losses of score networks on the same noised crystals, as ``train`` validates them.

    python scripts/validation_losses.py small other.safetensors --validation mp20_val.lxd \
        --crystals 4096 --out docs/results/validation_losses.json

Crystals, noise levels and noise are those of ``train --validation`` with so many crystals.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.checkpoint import load_model
from langevin_xtal.train.loop import TrainConfig, Trainer
from langevin_xtal.version import __version__


@click.command(help=__doc__)
@click.argument("models", nargs=-1, required=True)
@click.option("--validation", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--crystals", type=click.IntRange(min=1), default=4096, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(models: tuple[str, ...], validation: Path, crystals: int, out: Path) -> None:
    torch.set_num_threads(1)
    data, rows = PackedDataset.load(validation), {}
    for given in models:
        model = load_model(given)
        config = TrainConfig(
            steps=0,
            validation_size=crystals,
            network=model.network.config,
            levels=model.levels,
        )
        with TemporaryDirectory() as folder:
            trainer = Trainer(data, Path(folder) / "run", config, validation=data, start=model)
            means = trainer.validate()
        name = Path(given).stem
        rows[name] = {
            "weights": model.hash,
            "position": means.mean(0),
            "lattice": means.mean(1),
        }
        click.echo(f"{name} {rows[name]}")
    record = {
        "command": f"python scripts/validation_losses.py {' '.join(Path(m).name for m in models)} "
        f"--validation {validation.name} --crystals {crystals} --out {out}",
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "rows": rows,
    }
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
