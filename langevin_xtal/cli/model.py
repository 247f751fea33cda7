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
    from langevin_xtal.model.checkpoint import load_model, shipped_models

    if name is None:
        for shipped in shipped_models():
            echo(repr(load_model(shipped)))
        return
    chosen = load_model(name)
    echo(repr(chosen))
    echo(f"network  {chosen.network.config}")
    echo(f"levels   {chosen.levels}")
    echo(json.dumps(chosen.card, indent=2, ensure_ascii=False))
