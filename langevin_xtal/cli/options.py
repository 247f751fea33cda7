"""Options and parameter types shared by the commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.errors import InputError, RequestError
from langevin_xtal.symmetry.groups import SpaceGroup


class Elements(click.ParamType):
    """``Cu,Si,K`` to a tuple of symbols."""

    name = "elements"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Symbols in the order given; each once."""
        if isinstance(value, tuple):
            return value
        symbols = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not symbols:
            raise RequestError("no elements were given: --elements takes symbols such as Cu,Si,K")
        for symbol in symbols:
            atomic_number(symbol)
        twice = sorted({s for s in symbols if symbols.count(s) > 1})
        if twice:
            raise RequestError(f"element {twice[0]} is given twice; name each element once")
        return symbols


class Sites(click.ParamType):
    """``Cu:2,Si:1`` to a dictionary of site counts."""

    name = "sites"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, int]:
        """Element to number of sites."""
        if isinstance(value, dict):
            return value
        sites: dict[str, int] = {}
        for part in filter(None, (p.strip() for p in str(value).split(","))):
            symbol, colon, count = part.partition(":")
            if not colon or not re.fullmatch(r"[+-]?[0-9]{1,9}", count.strip()):
                raise RequestError(f"--sites: {part!r} should be like Cu:2 (element:sites)")
            if symbol.strip() in sites:
                raise RequestError(f"--sites: element {symbol.strip()} is given twice")
            sites[symbol.strip()] = int(count)
        return sites


class SpaceGroups(click.ParamType):
    """``62``, ``Pnma``, ``62,Fm-3m,140-142`` to a tuple of space groups."""

    name = "groups"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[SpaceGroup, ...]:
        """Groups in the order given, each once."""
        if isinstance(value, tuple):
            return value
        groups: dict[int, SpaceGroup] = {}
        for part in filter(None, (p.strip() for p in str(value).split(","))):
            span = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", part)
            if span and int(span[1]) > int(span[2]):
                raise InputError(f"--sg: range {part} is empty; give the smaller number first")
            numbers = range(int(span[1]), int(span[2]) + 1) if span else [part]
            for number in numbers:
                group = SpaceGroup.parse(number)
                groups[group.number] = group
        if not groups:
            raise InputError("--sg: no space group was given; give numbers or symbols, such as 62")
        return tuple(groups.values())


seed = click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu or cuda.", metavar="DEVICE"
)
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads.  [default: all; train leaves one to prepare batches]",
    metavar="N",
)


def output_folder(default: str) -> Any:
    """``--out``: a folder, made when missing."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=True),
        default=default,
        show_default=True,
        help="Folder to write to.",
        metavar="FOLDER",
    )


def set_threads(count: int) -> None:
    """Limit torch to ``count`` threads."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, fed with (done, planned); silent when stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, disable=None, leave=False, dynamic_ncols=True) as bar:

        def update(done: int, planned: int) -> None:
            bar.total = planned
            bar.update(done - bar.n)

        yield update
