"""Cell and sites of a CIF as they are listed, and what it says of its contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import cell_from_parameters
from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.formula import amounts
from langevin_xtal.errors import InputError, LatticeError, RejectError
from langevin_xtal.structures.cif_block import (
    UNKNOWN,
    Block,
    number,
    number_and_digits,
)
from langevin_xtal.structures.record import FARTHEST

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_SITES = 20_000
_VACANT = frozenset({"va", "vac", "vacancy", "□", "void"})


def lattice_of(block: Block) -> FloatArray:
    """(3, 3) rows of the cell [Å].

    Raises
    ------
    RejectError
        Where a length or angle is missing, or they form no cell.
    """
    values = []
    for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"):
        text = block.first([f"_cell_{name}"])
        if text is None:
            raise RejectError(f"the CIF lacks _cell_{name}")
        values.append(number(text, f"_cell_{name}"))
    try:
        return cell_from_parameters(values)
    except LatticeError:
        raise RejectError(
            "the cell lengths and angles form no cell", " ".join(f"{v:g}" for v in values)
        ) from None


@dataclass
class Site:
    """A site as it is listed."""

    label: str
    names: tuple[str, ...]  #: elements it may be, by type symbol or label
    frac: FloatArray
    digits: int
    occupancy: float
    multiplicity: int | None
    type_symbol: str
    number: int = 0


def sites_of(block: Block) -> tuple[list[Site], list[str]]:
    """Sites with their coordinates; notes on those left out.

    Raises
    ------
    RejectError
        Where something is missing, or is no number.
    """
    lines = _lines(block)
    sites: list[Site] = []
    notes: list[str] = []
    for k, line in enumerate(lines):
        label = line.label if line.label not in UNKNOWN else line.type_symbol
        label = label if label not in UNKNOWN else f"number {k + 1}"
        symbol = line.type_symbol if line.type_symbol not in UNKNOWN else ""
        why = _left_out(line, symbol, label, block)
        if why:
            notes.append(f"site {label} {why}")
        else:
            sites.append(_site(line, symbol, label))
    if not sites:
        raise RejectError("the CIF holds no atoms with coordinates")
    return sites, notes


class _Line(NamedTuple):
    """What a loop of sites says of one; empty where it has no such column."""

    coordinates: tuple[str, ...]
    label: str
    type_symbol: str
    occupancy: str
    flag: str
    multiplicity: str
    hydrogens: str


def _lines(block: Block) -> list[_Line]:
    key = next(
        (n for n in ("_atom_site_fract_x", "_atom_site_cartn_x") if n in block.values), None
    )
    if key is None:
        raise RejectError("the CIF holds no atoms with coordinates")
    if key == "_atom_site_cartn_x":
        raise RejectError(
            "the CIF gives Cartesian coordinates only", "_atom_site_fract_x is missing"
        )
    axes = []
    for axis in "xyz":
        found = block.column(f"_atom_site_fract_{axis}", key)
        if found is None:
            raise RejectError(f"the CIF lacks _atom_site_fract_{axis}")
        axes.append(found)
    count = len(axes[0])
    if count > MOST_SITES:
        raise RejectError(f"more than {MOST_SITES} sites", str(count))

    def optional(*names: str) -> list[str]:
        for name in names:
            found = block.column(f"_atom_site_{name}", key)
            if found is not None:
                return found
        return [""] * count

    columns = (
        zip(*axes, strict=True),
        optional("label"),
        optional("type_symbol"),
        optional("occupancy"),
        optional("calc_flag"),
        optional("site_symmetry_multiplicity", "symmetry_multiplicity"),
        optional("attached_hydrogens"),
    )
    return [_Line(*values) for values in zip(*columns, strict=True)]


def _left_out(line: _Line, symbol: str, label: str, block: Block) -> str:
    """Why a site is none; empty for one that counts."""
    if line.flag.lower() == "dum":
        return "is a dummy (calc_flag dum) and left out"
    if _is_vacancy(symbol, label, block):
        return "is a vacancy and left out"
    return "has occupancy 0 and is left out" if _occupancy(line, label) == 0 else ""


def _occupancy(line: _Line, label: str) -> float:
    text = line.occupancy
    return 1.0 if text in UNKNOWN else number(text, f"the occupancy of {label}")


def _site(line: _Line, symbol: str, label: str) -> Site:
    if any(value in UNKNOWN for value in line.coordinates):
        raise RejectError("a site has no coordinates", f"site {label}")
    parsed = [number_and_digits(v, f"a coordinate of {label}") for v in line.coordinates]
    if max(abs(value) for value, _ in parsed) > FARTHEST:
        raise RejectError("a position is far outside the cell", f"site {label}")
    attached = line.hydrogens
    if attached.isdigit() and int(attached):
        raise RejectError(
            "hydrogen atoms have no coordinates", f"{attached} are attached to site {label}"
        )
    given = line.multiplicity
    return Site(
        label=label,
        names=_elements_of(symbol, label),
        frac=np.array([value for value, _ in parsed]),
        digits=min(digits for _, digits in parsed),
        occupancy=_occupancy(line, label),
        multiplicity=int(given) if re.fullmatch(r"\d{1,4}", given) else None,
        type_symbol=symbol,
    )


def _is_vacancy(symbol: str, label: str, block: Block) -> bool:
    """Whether a site is called Va or Vac; a bare label may also mean vanadium."""
    name = symbol or re.match(r"[^\W\d_]*|□", label)[0]  # type: ignore[index]
    return name.lower() in _VACANT and bool(symbol or "V" not in _formula_elements(block))


def _elements_of(symbol: str, label: str) -> tuple[str, ...]:
    """Elements that a type symbol, or without one a label, may stand for; the likeliest first."""
    text = symbol or label
    letters = re.match(r"[A-Za-z]*", text)[0]  # type: ignore[index]
    if not letters:
        raise RejectError("a site names no element", f"site {label}")
    one, two = letters[0].upper(), letters[:2].capitalize()
    found = [name for name in (two, one) if name in _KNOWN]
    if symbol:
        if not found:
            raise RejectError("unknown element", f"{symbol} at site {label}")
        if len(letters) > 2 or (len(letters) == 2 and two not in _KNOWN):
            return tuple(found[:1]) if letters.lower() in ("oh", "od") else _refused(symbol, label)
        return (two,) if len(letters) == 2 else (one,)
    if not found:
        raise RejectError("a site names no element", f"site {label} has no _atom_site_type_symbol")
    if len(letters) == 1:
        return (one,)
    certain = len(letters) == 2 and letters[1].islower() and two in _KNOWN
    return (two,) if certain else tuple(dict.fromkeys(found))


def _refused(symbol: str, label: str) -> tuple[str, ...]:
    raise RejectError("unknown element", f"{symbol} at site {label}")


_KNOWN = frozenset({*SYMBOLS[1:], "D", "T"})
_ISOTOPES = {"D": "H", "T": "H"}


def _formula_elements(block: Block) -> set[str]:
    text = block.first(["_chemical_formula_sum"])
    try:
        return set(amounts(text, isotopes=True)) if text else set()
    except InputError:
        return set()


@dataclass(frozen=True)
class Facts:
    """Formula sum and formula units, None where the file does not have them."""

    formula: Mapping[str, Fraction] | None
    formula_text: str
    z: int | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, block: Block, sites: Sequence[Site]) -> Facts:
        """Those of a data block."""
        text = block.first(["_chemical_formula_sum"])
        z_text = block.first(["_cell_formula_units_z"])
        z = int(z_text) if z_text and re.fullmatch(r"\d{1,5}", z_text) and int(z_text) else None
        formula, notes = None, []
        if text:
            try:
                formula = {s: n for s, n in amounts(text, isotopes=True).items() if n}
            except InputError:
                notes.append(f"the formula sum {text[:40]!r} cannot be read, so it is not checked")
        return cls(formula or None, " ".join((text or "").split()), z, tuple(notes))

    def with_elements(self, sites: list[Site]) -> list[Site]:
        """Sites with their elements; a label that fits several is decided by the formula.

        Raises
        ------
        RejectError
            When it decides nothing.
        """
        known = set(self.formula or ())
        for site in sites:
            names = site.names
            if len(names) > 1:
                names = tuple(n for n in names if _ISOTOPES.get(n, n) in known) or names
                if len(names) > 1:
                    raise RejectError(
                        "a label fits several elements",
                        f"site {site.label} may be {' or '.join(names)}; "
                        "_atom_site_type_symbol is missing",
                    )
            elif not site.type_symbol and known and _ISOTOPES.get(names[0], names[0]) not in known:
                raise RejectError(
                    "a site's element is not in the formula sum",
                    f"site {site.label} reads as {names[0]}, the formula sum is "
                    f"{self.formula_text}; _atom_site_type_symbol is missing",
                )
            site.number = atomic_number(_ISOTOPES.get(names[0], names[0]))
        return sites

    def is_whole(self, numbers: IntArray) -> bool:
        """Whether atoms are a whole number of formula units, Z where it is given."""
        assert self.formula is not None
        units = len(numbers) / float(sum(self.formula.values()))
        return not self.contradiction(numbers) and units >= 1 and units == round(units)

    def contradiction(self, numbers: IntArray) -> str:
        """What atoms made have against the formula sum and Z; empty when all agree."""
        made = Counter(SYMBOLS[z] for z in numbers.tolist())
        text = " ".join(f"{symbol}{n}" for symbol, n in sorted(made.items()))
        if self.formula is None:
            return ""
        if set(made) != set(self.formula) or not _proportional(made, self.formula):
            return f"the formula sum is {self.formula_text}, the sites give {text}"
        if self.z is None:
            return ""
        total, units = len(numbers), sum(self.formula.values())
        if abs(float(units * self.z) - total) < 0.02 * total:
            return ""
        # some programs write the whole cell as formula sum, with Z for its parts
        parts = [n / self.z for n in self.formula.values()]
        if units == total and all(n.denominator == 1 for n in parts):
            return ""
        return (
            f"{self.formula_text} with Z = {self.z} makes {float(units * self.z):g} atoms, "
            f"the sites give {text} = {total}"
        )


def _proportional(made: Mapping[str, int], formula: Mapping[str, Fraction]) -> bool:
    if all(n.denominator == 1 for n in formula.values()):
        symbol = next(iter(made))
        return all(
            made[s] * formula[symbol] == formula[s] * made[symbol] for s in formula
        )  # exact
    scale = sum(made.values()) / float(sum(formula.values()))
    return all(
        abs(made[s] - scale * float(n)) <= 0.02 * made[s] + 0.01 for s, n in formula.items()
    )
