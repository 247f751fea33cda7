"""Symmetry of a CIF: operations as listed, or the settings that its symbols may mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import cell_parameters
from langevin_xtal.errors import RejectError, SymmetryError
from langevin_xtal.structures.cif_block import (
    MAGNETIC,
    OPERATIONS,
    UNKNOWN,
    Block,
)
from langevin_xtal.structures.operations import Operations, from_setting, group_of
from langevin_xtal.structures.record import first_line
from langevin_xtal.symmetry.settings import (
    Setting,
    hall_setting,
    lookup,
    setting_table,
    settings_of,
    settings_of_number,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_HM = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
)
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")
_CODE = ("_space_group_it_coordinate_system_code",)


@dataclass(frozen=True)
class Choice:
    """Operations to try, and what they are called."""

    operations: Operations
    name: str
    setting: Setting | None = None


def listed_operations(block: Block) -> Operations | None:
    """Operations that the file lists."""
    for name in OPERATIONS:
        texts = [t for t in block.values.get(name, ()) if t not in UNKNOWN]
        if texts:
            return group_of(tuple(texts))
    texts = [t for t in block.values.get(MAGNETIC[0], ()) if t not in UNKNOWN]
    if texts:
        shifts = [t for t in block.values.get(MAGNETIC[1], ()) if t not in UNKNOWN]
        return group_of(tuple(texts), tuple(shifts))
    return None


def other_symbol(block: Block, listed: Operations) -> str:
    """The symbol, where it is of another group than the operations listed; else empty."""
    text = block.first(_HM)
    found = _of_symbol(text)[0] if text else ()
    if not found or listed.reversal.min() < 0:
        return ""
    return "" if any(len(s.rotations) == len(listed) for s in found) else str(text)


def _of_symbol(text: str) -> tuple[tuple[Setting, ...], str]:
    """Settings of an H-M symbol, none when it is not one."""
    return tuple(map(Setting, lookup(text))), text


def choices_of(block: Block, lattice: FloatArray) -> tuple[list[Choice], str]:
    """Settings that the file may mean, and what it says."""
    hall, symbol = block.first(_HALL), block.first(_HM)
    number_text, code = block.first(_NUMBER), block.first(_CODE)
    number = int(number_text) if number_text and number_text.isdigit() else None
    if number is not None and not 1 <= number <= 230:
        raise RejectError("the number of the space group does not exist", str(number))
    by_symbol: tuple[Setting, ...] = ()
    if symbol:
        by_symbol = tuple(map(Setting, lookup(symbol)))
        if not by_symbol:
            other = hall_setting(symbol)
            by_symbol = (other,) if other else ()
    types = {s.number for s in by_symbol}
    if types and number is not None and number not in types:
        raise RejectError(
            "symbol and number of the space group differ",
            f"{symbol} is {', '.join(map(str, sorted(types)))}, the number is {number}",
        )
    if hall:
        return [_by_hall(hall, types, number, symbol)], f"the Hall symbol {hall}"
    if symbol and not by_symbol:
        raise RejectError("the symbol of the space group is not known", _proposal(symbol))
    if by_symbol:
        said = f"the symbol {symbol}"
        found = by_symbol
    elif number is not None:
        said = f"the number {number}"
        found = settings_of_number(number)
    else:
        return [], ""
    if code:
        exact = [s for s in found if s.choice.lower() == code.lower()]
        found = tuple(exact) or found
    fitting = [s for s in found if s.fits(lattice)]
    # of several axes, those that the angles fit to their digits
    fitting = [s for s in fitting if s.fits(lattice, 5e-4)] or fitting
    if not fitting:
        raise RejectError(
            "the cell does not have the symmetry of the space group",
            f"{said}, cell {' '.join(f'{v:g}' for v in cell_parameters(lattice))}",
        )
    if by_symbol and len({s.choice[-2:-1] or s.choice for s in fitting}) > 1:
        fitting = _short_monoclinic(symbol or "", fitting)
    different: dict[frozenset[tuple[int, ...]], Choice] = {}
    for setting in fitting:
        operations = _operations(setting.hall_number)
        choice = f":{setting.choice}" if setting.choice else ""
        different.setdefault(
            operations.keys(), Choice(operations, f"{setting.symbol}{choice}", setting)
        )
    return list(different.values()), said


def _short_monoclinic(symbol: str, fitting: list[Setting]) -> list[Setting]:
    """Of a monoclinic symbol without axes, unique axis b, as the International Tables have it."""
    if not all(3 <= s.number <= 15 for s in fitting):
        return fitting
    axis_b = [s for s in fitting if s.choice.lstrip("-").startswith("b")]
    return axis_b or fitting


_MADE_OPERATIONS: dict[int, Operations] = {}


def _operations(hall: int) -> Operations:
    if hall not in _MADE_OPERATIONS:
        setting = Setting(hall)
        _MADE_OPERATIONS[hall] = from_setting(setting.rotations, setting.translations24)
    return _MADE_OPERATIONS[hall]


def _by_hall(hall: str, types: set[int], number: int | None, symbol: str | None) -> Choice:
    setting = hall_setting(hall)
    operations = _operations(setting.hall_number) if setting else _from_hall_text(hall)
    name = setting.symbol if setting else hall
    wanted = types or ({number} if number is not None else set())
    if wanted:
        found = setting.number if setting else None
        if found is None:
            table = setting_table()
            sizes = {int(np.diff(table.start)[s.hall_number - 1]) for n in wanted
                     for s in settings_of_number(n)}  # fmt: skip
            wrong = len(operations) not in sizes
        else:
            wrong = found not in wanted
        if wrong:
            raise RejectError(
                "Hall symbol and symbol or number of the space group differ",
                f"{hall} is not {symbol or number}",
            )
    return Choice(operations, name, setting)


def _from_hall_text(hall: str) -> Operations:
    """Operations of a Hall symbol that the table does not have, such as one with a shift."""
    import gemmi

    try:
        group = gemmi.symops_from_hall(hall)
        texts = tuple(op.triplet() for op in group)
    except (RuntimeError, ValueError) as error:
        raise RejectError(
            "the Hall symbol cannot be read", f"{hall}: {first_line(error)}"
        ) from None
    return group_of(texts)


def _proposal(symbol: str) -> str:

    try:
        settings_of(symbol)
    except SymmetryError as error:
        return str(error)
    return symbol
