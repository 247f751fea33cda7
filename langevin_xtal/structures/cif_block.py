"""The syntax of a CIF: values and columns of a data block, and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from langevin_xtal.errors import RejectError
from langevin_xtal.structures.record import first_line

UNKNOWN = frozenset({"", "?", "."})
OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
MAGNETIC = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_centering_xyz")
_EVERYONE = (*OPERATIONS, *MAGNETIC)


@dataclass
class Block:
    """Values by lower-case name, dots of newer dictionaries as underscores; columns of loops."""

    values: dict[str, list[str]]
    loop_of: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def first(self, names: Iterable[str]) -> str | None:
        """The first value that is known."""
        for name in names:
            for value in self.values.get(name, ())[:1]:
                if value not in UNKNOWN:
                    return value
        return None

    def column(self, name: str, like: str | None = None) -> list[str] | None:
        """All values of a name, where it stands in the same loop as another."""
        if like is not None and self.loop_of.get(name) != self.loop_of.get(like):
            return None
        return self.values.get(name)


_TRIPLE = re.compile(r'"""(.*?)"""|' + r"'''(.*?)'''", re.DOTALL)
_LOOSE = re.compile(
    r"^(_\S+)([ \t]+)([^\s'\";#_][^\n'\";#]*[ \t][^\n'\";#]*?)[ \t]*$", re.MULTILINE
)


def tokenised(text: str) -> Block:
    """The one data block of a text that holds atoms.

    Raises
    ------
    RejectError
        When the text is no CIF, or says a thing twice in different ways.
    """
    from gemmi import cif

    if "_atom_site" not in text.lower():
        raise RejectError("the CIF holds no atoms")
    text = _TRIPLE.sub(
        lambda m: "\n;" + (m[1] or m[2] or "").replace("\n;", "\n ;") + "\n;\n", text
    )
    notes: list[str] = []
    document = cif.Document()
    try:
        document.parse_string(text)
    except (ValueError, RuntimeError, UnicodeError) as error:
        mended = _LOOSE.sub(lambda m: f"{m[1]} '{m[3]}'", text)
        document = cif.Document()
        try:
            document.parse_string(mended)
        except (ValueError, RuntimeError, UnicodeError):
            where = re.sub(r"^string:(\d+):\S*", r"line \1:", first_line(error))
            raise RejectError("the CIF cannot be parsed", where) from None
        notes.append("values of several words without quotation marks are taken as one")
    blocks = [b for b in document if any("_atom_site" in t.lower() for t in _tags(b))]
    if len(blocks) != 1:
        raise RejectError("the CIF holds no atoms" if not blocks else "several data blocks in one")
    found = Block({}, {}, notes)
    chosen: Any = blocks[0]
    for place, item in enumerate(chosen):
        if item.pair is not None:
            _add(found, item.pair[0], [cif.as_string(item.pair[1])], place)
        elif item.loop is not None:
            loop = item.loop
            width = len(loop.tags)
            values = [cif.as_string(v) for v in loop.values]
            for k, tag in enumerate(loop.tags):
                _add(found, tag, values[k::width], place)
    return found


def _tags(block: Any) -> Iterator[str]:
    for item in block:
        if item.pair is not None:
            yield item.pair[0]
        elif item.loop is not None:
            yield from item.loop.tags


def _add(block: Block, tag: str, values: list[str], place: int) -> None:
    name = tag.lower().replace(".", "_")
    clean = [value.strip() for value in values]
    if name in block.values:
        if block.values[name] != clean and name.startswith(("_cell_", "_atom_site_", *_EVERYONE)):
            raise RejectError("the CIF gives a value twice, differently", tag)
        return
    block.values[name], block.loop_of[name] = clean, place


_DECIMAL = re.compile(
    r"[+-]?(\d{1,9}\.?(\d{0,30})|\.(\d{1,30}))(?:[eE][+-]?\d{1,2})?(?:\(\d*\)?)?"
)
_RATIO = re.compile(r"([+-]?\d{1,9})/(\d{1,9})")


def number(text: str, name: str) -> float:
    """A number, with or without its uncertainty: ``0.2501(3)``."""
    return number_and_digits(text, name)[0]


def number_and_digits(text: str, name: str) -> tuple[float, int]:
    """A number and the digits after its point; those of 0, 1/3 and halves count as many."""
    ratio = _RATIO.fullmatch(text)
    if ratio and int(ratio[2]):
        return int(ratio[1]) / int(ratio[2]), 12
    found = _DECIMAL.fullmatch(text)
    if not found:
        raise RejectError(f"{name} is no number", repr(text[:40]))
    value = float(text.partition("(")[0])
    digits = len(found[2] or found[3] or "")
    if "e" in text.lower():
        digits = 12
    exact = abs(value * 8 - round(value * 8)) < 1e-12
    return value, 12 if exact else digits
