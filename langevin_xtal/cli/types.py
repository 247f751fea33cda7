"""Values of options: elements, sites, cells and points as the command line writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.errors import RequestError

if TYPE_CHECKING:
    ParamType = click.ParamType[object, object]
    PathType = click.Path[str | Path]
from langevin_xtal.cli import options

FixedPoints = tuple[tuple[str, tuple[float, float, float]], ...]
"""Sites to keep where they are: symbol and fractional coordinates."""


class Elements(options.ParamType):
    """``Cu,Si,K``, ``Cu Si K`` or ``Cu-Si-K`` to a tuple of symbols."""

    name = "elements"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Symbols in the order given; each once."""
        if isinstance(value, tuple):
            return value
        symbols = tuple(filter(None, re.split(r"[\s,;-]+", str(value))))
        if not symbols:
            raise RequestError("no elements were given: --elements takes symbols such as Cu,Si,K")
        for symbol in symbols:
            atomic_number(symbol)
        twice = sorted({s for s in symbols if symbols.count(s) > 1})
        if twice:
            raise RequestError(f"element {twice[0]} is given twice; name each element once")
        return symbols


class Sites(options.ParamType):
    """``Cu:2,Si:1`` or ``Cu:2 Si:1`` to a dictionary of site counts."""

    name = "sites"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        """Element to number of sites."""
        if isinstance(value, dict):
            return value
        sites: dict[str, int] = {}
        parts = re.split(r"[,;]|\s+(?=[A-Z])", str(value))
        for part in filter(None, (p.strip() for p in parts)):
            symbol, colon, count = part.partition(":")
            if not colon or not re.fullmatch(r"[+-]?[0-9]{1,9}", count.strip()):
                raise RequestError(f"--sites: {part!r} should be like Cu:2 (element:sites)")
            if symbol.strip() in sites:
                raise RequestError(f"--sites: element {symbol.strip()} is given twice")
            sites[symbol.strip()] = int(count)
        return sites


class CellParameters(options.ParamType):
    """``a,b,c`` or ``a,b,c,alpha,beta,gamma`` to a tuple of numbers."""

    name = "cell"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Three lengths [Å], or those and three angles [degrees]."""
        if isinstance(value, tuple):
            return value
        cell = tuple(_number(part) for part in str(value).split(","))
        if len(cell) not in (3, 6) or not all(v is not None and v > 0 for v in cell):
            name = "--fix-lattice" if param is None else param.opts[0]
            raise RequestError(
                f"{name}: {value!r} should be a,b,c [Å] or a,b,c,alpha,beta,gamma "
                "[Å, degrees], such as 7.1,4.2,5.3"
            )
        return tuple(v for v in cell if v is not None)


class FixedSites(options.ParamType):
    """``Cu:0,0,0;Si:1/4,1/4,1/4`` to pairs of a symbol and a point."""

    name = "fixed sites"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> FixedPoints:
        """(symbol, (x, y, z)) in the order given; fractional coordinates."""
        if isinstance(value, tuple):
            return value
        fixed = []
        for part in filter(None, (p.strip() for p in str(value).split(";"))):
            symbol, colon, numbers = part.partition(":")
            point = tuple(_number(x) for x in numbers.split(","))
            if not colon or len(point) != 3 or None in point:
                raise RequestError(
                    f"--fix-sites: {part!r} should be like Si:0.25,0.25,0.25 or Si:1/4,1/4,1/4 "
                    "(element:x,y,z in fractions of the cell)"
                )
            atomic_number(symbol.strip())
            x, y, z = (v for v in point if v is not None)
            fixed.append((symbol.strip(), (x, y, z)))
        if not fixed:
            raise RequestError(
                "--fix-sites: no site was given; give some such as Cu:0,0,0;Si:0.25,0.25,0.25"
            )
        return tuple(fixed)


_NUMBER = re.compile(r"([+-]?[0-9]{0,9}(?:\.[0-9]{0,15})?)(?:/([0-9]{1,9}))?")


def _number(text: str) -> float | None:
    """A decimal number or a fraction such as 1/3; None for anything else."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or not any(c.isdigit() for c in found[1]):
        return None
    divisor = float(found[2] or 1)
    return float(found[1]) / divisor if divisor else None
