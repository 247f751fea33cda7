"""Configurations in TOML files: tables become dataclasses, and what is wrong is said in full."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import TypeVar

from langevin_xtal.errors import InputError

T = TypeVar("T")

_KINDS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "int | None": int,
    "float": (int, float),
    "float | None": (int, float),
    "str": str,
    "bool": bool,
    "Sequence[str]": list,
}
"""What values of a field may be, by its annotation; others are not looked at."""


def parse_toml(text: str, where: str) -> dict[str, object]:
    """The table of a TOML text.

    Raises
    ------
    InputError
        When it is none; ``where`` names it.
    """
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not TOML ({error})") from None


def read_toml(path: Path, where: str) -> dict[str, object]:
    """The table of a TOML file.

    Raises
    ------
    InputError
        When it cannot be read or is no TOML; ``where`` names it.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where} cannot be read ({error})") from None


def table_of(value: object, place: str) -> dict[str, object]:
    """The value, if it is a table.

    Raises
    ------
    InputError
        Naming the place, when it is none.
    """
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a table, got {value!r}")
    return value


def list_of(value: object) -> list[object]:
    """The value, or a list of it alone."""
    return value if isinstance(value, list) else [value]


def from_table(kind: type[T], values: object, place: str) -> T:
    """A dataclass from a table.

    Raises
    ------
    InputError
        Naming the place, for unknown and missing keys and values of another type.
    """
    table = table_of(values, place)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise InputError(f"{place}: unknown keys {unknown}; known: {sorted(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if dataclasses.MISSING is f.default is f.default_factory and name not in table
    ]
    if missing:
        raise InputError(f"{place}: {', '.join(missing)} missing")
    for name, value in table.items():
        expected = _KINDS.get(str(fields[name].type))
        wrong = expected is not None and not isinstance(value, expected)
        if wrong or (isinstance(value, bool) and expected is not bool) or (
            expected is list
            and isinstance(value, list)
            and not all(isinstance(v, str) for v in value)
        ):  # fmt: skip
            raise InputError(f"{place}: {name} = {value!r} should be {fields[name].type}")
    return kind(**table)
