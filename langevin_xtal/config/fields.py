"""Fields that say what they mean and what values they take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from langevin_xtal.errors import InputError

KEY = "setting"

ConfigT = TypeVar("ConfigT")


class Dataclass(Protocol):
    """Any instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@dataclass(frozen=True)
class Setting:
    """What is said of a field beside its default."""

    help: str = ""
    low: float | None = None  #: least value
    above: float | None = None  #: values are larger than this, and finite
    high: float | None = None  #: largest value
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    shown: bool = True  #: whether help shows the default
    flag: str = ""  #: name of the option, where it is not that of the field


def setting(default: Any, help: str = "", **facts: Any) -> Any:
    """A field with a :class:`Setting`; ``choices`` may be any sequence."""
    facts["choices"] = tuple(facts.get("choices", ()))
    return dataclasses.field(default=default, metadata={KEY: Setting(help, **facts)})


def setting_of(
    config: Dataclass | type[Dataclass], name: str
) -> tuple[dataclasses.Field[Any], Setting]:
    """A field of a configuration class, and what is said of it."""
    (found,) = (f for f in dataclasses.fields(config) if f.name == name)
    return found, found.metadata.get(KEY, Setting())


def check(config: Dataclass) -> None:
    """Refuse values out of range.

    Raises
    ------
    InputError
        Naming the first field, its value and what it must be.
    """
    for field in dataclasses.fields(config):
        said, value = field.metadata.get(KEY), getattr(config, field.name)
        if said is None or value is None:
            continue
        name = field.name
        if said.choices:
            if value not in said.choices:
                known = ", ".join(said.choices)
                raise InputError(f"{name} {value!r} is not known; give one of {known}")
        elif said.above is not None and not said.above < value < math.inf:
            least = "positive" if said.above == 0 else f"above {said.above:g}"
            raise InputError(f"{name} is {value}; it must be {least} and finite")
        elif said.low is not None and not said.low <= value < math.inf:
            raise InputError(f"{name} is {value}; it must be at least {said.low:g}")
        if said.high is not None and value > said.high:
            raise InputError(f"{name} is {value}; it must be at most {said.high:g}")


def preset(
    kind: type[ConfigT], presets: Mapping[str, Mapping[str, object]], name: str, **changes: Any
) -> ConfigT:
    """A configuration by the name of a preset, with changes.

    Raises
    ------
    InputError
        For an unknown preset.
    """
    if name not in presets:
        raise InputError(f"preset {name!r} is not known; give one of {', '.join(presets)}")
    return kind(**{**presets[name], **changes})


def names(config: Dataclass | type[Dataclass], *, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Fields of a configuration class that have a :class:`Setting`."""
    return tuple(
        f.name for f in dataclasses.fields(config) if KEY in f.metadata and f.name not in without
    )
