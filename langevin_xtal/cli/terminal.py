"""What the commands print: without passwords, and without what steers a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from langevin_xtal.errors import LangevinXtalWarning
from langevin_xtal.text import printable


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line; names of files and structures in it may hold anything."""
    click.echo(printable(str(text)), err=err)


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Warnings of the package are a line each on stderr while the block runs."""
    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.filterwarnings("always", category=LangevinXtalWarning)

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, LangevinXtalWarning):
                echo(f"Warning: {' '.join(str(message).split())}", err=True)
            else:
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        yield
