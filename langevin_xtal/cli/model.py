"""``langevin-xtal model``: what weights are there, and what they were trained on."""

from __future__ import annotations

import json

import click

from langevin_xtal.cli.terminal import echo


@click.group()
def model() -> None:
    """Shipped and own models."""


@model.command()
@click.argument("name", required=False)
def info(name: str | None) -> None:
    """Show the model card of NAME (a shipped name or a file), or list the shipped models.

    \b
    Example:
      langevin-xtal model info small
    """
    from langevin_xtal.model.checkpoint import CrystalModel, load_model, shipped_models
    from langevin_xtal.model.properties import PropertyModel, load_properties, shipped_properties

    if name is None:
        for shipped in shipped_models():
            echo(repr(load_model(shipped)))
        for shipped in shipped_properties():
            echo(repr(load_properties(shipped)))
        return
    chosen: CrystalModel | PropertyModel
    if name in shipped_properties():
        chosen = load_properties(name)
        echo(repr(chosen))
        echo(f"trunk    {chosen.network.trunk.config}")
        echo(f"heads    {chosen.network.config}")
    else:
        chosen = load_model(name)
        echo(repr(chosen))
        echo(f"network  {chosen.network.config}")
        echo(f"levels   {chosen.levels}")
    echo(json.dumps(chosen.card, indent=2, ensure_ascii=False))
