"""CIF and magnetic CIF: gemmi reads the syntax, the crystallography is done here.

Where the symmetry comes from, in this order: the operations as listed; the Hall symbol; the
Hermann-Mauguin symbol with its setting, in the table of 530; the number of the group where its
settings leave no doubt. A symbol or number that several settings share is tried in all of them,
and what the file says of its contents (formula sum, Z, multiplicities, the shape of the cell)
must leave exactly one crystal. Nothing is guessed beyond that: the crystal is right, or refused
with what is missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import cell_from_parameters
from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.formula import amounts
from langevin_xtal.errors import InputError, LatticeError, RejectError, SymmetryError
from langevin_xtal.structures.operations import Operations, from_setting, group_of
from langevin_xtal.structures.record import FARTHEST, ReadStructure, covalent_radii, first_line
from langevin_xtal.symmetry.settings import (
    Setting,
    hall_setting,
    lookup,
    setting_table,
    settings_of_number,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NEAR = (0.05, 0.25)
"""Images of a site closer than this are one atom [Å]: the first for coordinates with many digits,
the second, at most, for few."""
APART = 0.3
"""Several images of a site are at least this far from each other [Å]."""
SAME = 1e-3
"""Two listed sites closer than this are one site [Å]."""
FULL = 2e-3
"""An occupancy that differs from 1 by less is full."""
IMPOSSIBLE, ORDINARY = 0.65, 0.75
"""Distances over the sum of covalent radii: no crystal has less; what is expected of one."""
MOST_SITES = 20_000
MOST_MADE = 100_000

_UNKNOWN = frozenset({"", "?", "."})
_OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_MAGNETIC = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_centering_xyz")
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_HM = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
)
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")
_CODE = ("_space_group_it_coordinate_system_code",)
_VACANT = frozenset({"va", "vac", "vacancy", "□", "void"})
_EVERYONE = (*_OPERATIONS, *_MAGNETIC)


def split_blocks(text: str) -> list[tuple[str, str]]:
    """(name, text) of the data blocks that hold atoms; the whole text when none does.

    Lines within text fields that look like the beginning of a block are none.
    """
    starts: list[tuple[int, str]] = []
    inside, place = False, 0
    for line in text.splitlines(keepends=True):
        if line.startswith(";"):
            inside = not inside
        elif not inside and line[:5].lower() == "data_":
            starts.append((place, line[5:].split(None, 1)[0] if line[5:].split() else ""))
        place += len(line)
    if not starts:
        return [("", text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    blocks = [
        (name, text[start:end])
        for (start, name), end in zip(starts, ends, strict=True)
        if "_atom_site" in text[start:end].lower()
    ]
    return blocks or [("", text)]


def parse_cif(text: str) -> ReadStructure:
    """The crystal of one data block.

    Raises
    ------
    RejectError
        When it holds none that is known for certain; the reason names what is missing, or both
        sides of a contradiction.
    """
    block = _tokenised(text)
    lattice = _lattice(block)
    sites, notes = _sites(block, lattice)
    facts = _Facts.of(block, sites)
    sites = facts.with_elements(sites)
    made, more = _crystal(block, lattice, sites, facts)
    notes += more
    for note in block.notes:
        notes.insert(0, note)
    return ReadStructure(
        id="",
        cell=(lattice, made.frac, np.array([sites[k].number for k in made.owner], np.int64)),
        moments=made.moments,
        oxidation=_oxidation(block, sites, made.owner),
        notes=tuple(notes),
    )


# --- syntax -------------------------------------------------------------------------------------


@dataclass
class _Block:
    """Values by lower-case name, dots of newer dictionaries as underscores; columns of loops."""

    values: dict[str, list[str]]
    loop_of: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def first(self, names: Iterable[str]) -> str | None:
        """The first value that is known."""
        for name in names:
            for value in self.values.get(name, ())[:1]:
                if value not in _UNKNOWN:
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


def _tokenised(text: str) -> _Block:
    """
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
    found = _Block({}, {}, notes)
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


def _add(block: _Block, tag: str, values: list[str], place: int) -> None:
    name = tag.lower().replace(".", "_")
    clean = [value.strip() for value in values]
    if name in block.values:
        if block.values[name] != clean and name.startswith(("_cell_", "_atom_site_", *_EVERYONE)):
            raise RejectError("the CIF gives a value twice, differently", tag)
        return
    block.values[name], block.loop_of[name] = clean, place


# --- cell and sites -----------------------------------------------------------------------------


def _lattice(block: _Block) -> FloatArray:
    values = []
    for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"):
        text = block.first([f"_cell_{name}"])
        if text is None:
            raise RejectError(f"the CIF lacks _cell_{name}")
        values.append(_number(text, f"_cell_{name}"))
    try:
        return cell_from_parameters(values)
    except LatticeError:
        raise RejectError(
            "the cell lengths and angles form no cell", " ".join(f"{v:g}" for v in values)
        ) from None


_DECIMAL = re.compile(
    r"[+-]?(\d{1,9}\.?(\d{0,30})|\.(\d{1,30}))(?:[eE][+-]?\d{1,2})?(?:\(\d*\)?)?"
)
_RATIO = re.compile(r"([+-]?\d{1,9})/(\d{1,9})")


def _number(text: str, name: str) -> float:
    """A number, with or without its uncertainty: ``0.2501(3)``."""
    return _number_and_digits(text, name)[0]


def _number_and_digits(text: str, name: str) -> tuple[float, int]:
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


@dataclass
class _Site:
    label: str
    names: tuple[str, ...]  #: elements it may be, by type symbol or label
    frac: FloatArray
    digits: int
    occupancy: float
    multiplicity: int | None
    type_symbol: str
    number: int = 0


def _sites(block: _Block, lattice: FloatArray) -> tuple[list[_Site], list[str]]:
    """Sites with their coordinates; notes on those left out."""
    key = next(
        (n for n in ("_atom_site_fract_x", "_atom_site_cartn_x") if n in block.values), None
    )
    if key is None:
        raise RejectError("the CIF holds no atoms with coordinates")
    if key == "_atom_site_cartn_x":
        raise RejectError(
            "the CIF gives Cartesian coordinates only", "_atom_site_fract_x is missing"
        )
    columns = {}
    for axis in "xyz":
        found = block.column(f"_atom_site_fract_{axis}", key)
        if found is None:
            raise RejectError(f"the CIF lacks _atom_site_fract_{axis}")
        columns[axis] = found
    count = len(columns["x"])
    if count > MOST_SITES:
        raise RejectError(f"more than {MOST_SITES} sites", str(count))

    def optional(*names: str) -> list[str]:
        for name in names:
            found = block.column(f"_atom_site_{name}", key)
            if found is not None:
                return found
        return [""] * count

    labels, types = optional("label"), optional("type_symbol")
    occupancies, flags = optional("occupancy"), optional("calc_flag")
    multiplicities = optional("site_symmetry_multiplicity", "symmetry_multiplicity")
    hydrogens = optional("attached_hydrogens")
    sites: list[_Site] = []
    notes: list[str] = []
    for k in range(count):
        label = labels[k] if labels[k] not in _UNKNOWN else types[k]
        label = label if label not in _UNKNOWN else f"number {k + 1}"
        if flags[k].lower() == "dum":
            notes.append(f"site {label} is a dummy (calc_flag dum) and left out")
            continue
        symbol = types[k] if types[k] not in _UNKNOWN else ""
        if _is_vacancy(symbol, label, block):
            notes.append(f"site {label} is a vacancy and left out")
            continue
        text = occupancies[k]
        occupancy = 1.0 if text in _UNKNOWN else _number(text, f"the occupancy of {label}")
        if occupancy == 0:
            notes.append(f"site {label} has occupancy 0 and is left out")
            continue
        coordinates = [columns[axis][k] for axis in "xyz"]
        if any(value in _UNKNOWN for value in coordinates):
            raise RejectError("a site has no coordinates", f"site {label}")
        parsed = [_number_and_digits(v, f"a coordinate of {label}") for v in coordinates]
        if max(abs(value) for value, _ in parsed) > FARTHEST:
            raise RejectError("a position is far outside the cell", f"site {label}")
        attached = hydrogens[k]
        if attached.isdigit() and int(attached):
            raise RejectError(
                "hydrogen atoms have no coordinates", f"{attached} are attached to site {label}"
            )
        given = multiplicities[k]
        sites.append(
            _Site(
                label=label,
                names=_elements_of(symbol, label),
                frac=np.array([value for value, _ in parsed]),
                digits=min(digits for _, digits in parsed),
                occupancy=occupancy,
                multiplicity=int(given) if re.fullmatch(r"\d{1,4}", given) else None,
                type_symbol=symbol,
            )
        )
    if not sites:
        raise RejectError("the CIF holds no atoms with coordinates")
    return sites, notes


def _is_vacancy(symbol: str, label: str, block: _Block) -> bool:
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


def _formula_elements(block: _Block) -> set[str]:
    text = block.first(["_chemical_formula_sum"])
    try:
        return set(amounts(text, isotopes=True)) if text else set()
    except InputError:
        return set()


# --- what the file says of its contents ---------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """Formula sum and formula units, None where the file does not have them."""

    formula: Mapping[str, Fraction] | None
    formula_text: str
    z: int | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, block: _Block, sites: Sequence[_Site]) -> _Facts:
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

    def with_elements(self, sites: list[_Site]) -> list[_Site]:
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


# --- symmetry -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """Operations to try, and what they are called."""

    operations: Operations
    name: str
    setting: Setting | None = None


def _crystal(
    block: _Block, lattice: FloatArray, sites: list[_Site], facts: _Facts
) -> tuple[_Made, list[str]]:
    """The one crystal that the file describes, and notes on how it was found."""
    notes = list(facts.notes)
    listed = _listed(block)
    if listed is not None:
        made = _made(listed, lattice, sites, block)
        against = facts.contradiction(_numbers(sites, made)) or made.contradiction
        symbol = _other_symbol(block, listed)
        count = f"symmetry operations listed ({len(listed)})"
        if against:
            hint = f"; the {count} are not those of {symbol}" if symbol else ""
            raise RejectError("the atoms contradict the file", against + hint)
        notes += made.notes
        if symbol:
            notes.append(f"the {count} are not those of the symbol {symbol}; the operations count")
        return made, notes
    choices, said = _choices(block, lattice)
    if not choices:
        made = _made(group_of(("x,y,z",)), lattice, sites, block)
        if facts.formula is None or not facts.is_whole(_numbers(sites, made)):
            raise RejectError(
                "the symmetry is not given",
                "operations, Hall or Hermann-Mauguin symbol and number are missing",
            )
        return made, [*notes, *made.notes, "no symmetry is given; the sites make up the formula"]
    tried: list[tuple[_Choice, _Made]] = []
    reasons: list[str] = []
    for choice in choices:
        try:
            made = _made(choice.operations, lattice, sites, block)
        except RejectError as reject:
            if len(choices) == 1:
                raise
            reasons.append(str(reject))
            continue
        against = facts.contradiction(_numbers(sites, made)) or made.contradiction
        if against:
            reasons.append(f"{against} in {choice.name}" if len(choices) > 1 else against)
        else:
            tried.append((choice, made))
    if not tried:
        raise RejectError("the atoms contradict the file", reasons[0])
    if len(tried) > 1:
        tried = _sensible(tried, lattice, sites)
    if len(tried) > 1:
        names = ", ".join(choice.name for choice, _ in tried[:4])
        more = f" and {len(tried) - 4} more" if len(tried) > 4 else ""
        raise RejectError(
            "the setting of the space group is not given",
            f"{said} may be {names}{more}, which give different crystals; add the symmetry "
            "operations, the Hall symbol or the choice of origin or axes",
        )
    choice, made = tried[0]
    notes += made.notes
    if len(choices) > 1:
        notes.append(f"{said} is read as {choice.name}, the only setting that fits")
    return made, notes


def _sensible(
    tried: list[tuple[_Choice, _Made]], lattice: FloatArray, sites: list[_Site]
) -> list[tuple[_Choice, _Made]]:
    """Settings left when those with impossibly short distances are struck out.

    A setting is struck out only where another has ordinary distances.
    """
    if max(len(made.owner) for _, made in tried) > 1000:
        return tried
    closest = [_closest(made, lattice, sites) for _, made in tried]
    if max(closest) < ORDINARY:
        return tried
    return [pair for pair, ratio in zip(tried, closest, strict=True) if ratio > IMPOSSIBLE]


def _closest(made: _Made, lattice: FloatArray, sites: list[_Site]) -> float:
    """Smallest distance between atoms over the sum of their covalent radii."""
    radius = covalent_radii()[[site.number for site in sites]][made.owner]
    delta = made.frac[:, None] - made.frac
    delta -= np.rint(delta)
    length = np.sqrt(((delta @ lattice) ** 2).sum(axis=2))
    np.fill_diagonal(length, np.inf)
    return float((length / (radius[:, None] + radius)).min())


def _numbers(sites: Sequence[_Site], made: _Made) -> IntArray:
    return np.array([sites[k].number for k in made.owner], dtype=np.int64)


def _listed(block: _Block) -> Operations | None:
    """Operations that the file lists."""
    for name in _OPERATIONS:
        texts = [t for t in block.values.get(name, ()) if t not in _UNKNOWN]
        if texts:
            return group_of(tuple(texts))
    texts = [t for t in block.values.get(_MAGNETIC[0], ()) if t not in _UNKNOWN]
    if texts:
        shifts = [t for t in block.values.get(_MAGNETIC[1], ()) if t not in _UNKNOWN]
        return group_of(tuple(texts), tuple(shifts))
    return None


def _other_symbol(block: _Block, listed: Operations) -> str:
    """The symbol, where it is of another group than the operations listed; else empty."""
    text = block.first(_HM)
    found = _of_symbol(text)[0] if text else ()
    if not found or listed.reversal.min() < 0:
        return ""
    return "" if any(len(s.rotations) == len(listed) for s in found) else str(text)


def _of_symbol(text: str) -> tuple[tuple[Setting, ...], str]:
    """Settings of an H-M symbol, none when it is not one."""
    return tuple(map(Setting, lookup(text))), text


def _choices(block: _Block, lattice: FloatArray) -> tuple[list[_Choice], str]:
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
            f"{said}, cell {' '.join(f'{v:g}' for v in _parameters(lattice))}",
        )
    if by_symbol and len({s.choice[-2:-1] or s.choice for s in fitting}) > 1:
        fitting = _short_monoclinic(symbol or "", fitting)
    different: dict[frozenset[tuple[int, ...]], _Choice] = {}
    for setting in fitting:
        operations = _operations(setting.hall_number)
        choice = f":{setting.choice}" if setting.choice else ""
        different.setdefault(
            operations.keys(), _Choice(operations, f"{setting.symbol}{choice}", setting)
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


def _by_hall(hall: str, types: set[int], number: int | None, symbol: str | None) -> _Choice:
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
    return _Choice(operations, name, setting)


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
    from langevin_xtal.symmetry.settings import settings_of

    try:
        settings_of(symbol)
    except SymmetryError as error:
        return str(error)
    return symbol


def _parameters(lattice: FloatArray) -> tuple[float, ...]:
    from langevin_xtal.crystal.cell import cell_parameters

    return cell_parameters(lattice)


# --- atoms --------------------------------------------------------------------------------------


@dataclass
class _Made:
    """N atoms of the cell."""

    frac: FloatArray  #: (N, 3) in [0, 1)
    owner: IntArray  #: (N,) site that each is an image of
    moments: FloatArray | None
    contradiction: str
    notes: list[str]


def _made(ops: Operations, lattice: FloatArray, sites: list[_Site], block: _Block) -> _Made:
    """Expand the sites.

    Raises
    ------
    RejectError
        For partial occupancy, and images of a site that are neither apart nor one.
    """
    rotations = np.swapaxes(ops.rotations, 1, 2)
    longest = float(np.linalg.norm(lattice, axis=1).max())
    images: list[FloatArray] = []
    points: list[FloatArray] = []
    wrong = ""
    total = 0
    for site in sites:
        reach = min(max(NEAR[0], 3 * 10.0**-site.digits * longest), NEAR[1])
        point, found = _images(site, rotations, ops.translations, lattice, reach)
        points.append(point)
        images.append(found)
        total += len(found)
        if total > MOST_MADE:
            raise RejectError(f"more than {MOST_MADE} atoms")
        if site.multiplicity is not None and len(ops) > 1 and site.multiplicity != len(found):
            wrong = wrong or (
                f"site {site.label} has multiplicity {site.multiplicity} in the file and "
                f"{len(found)} images"
            )
    kept, notes = _one_each(sites, images, lattice)
    frac = np.concatenate([images[k] for k in kept])
    owner = np.repeat(kept, [len(images[k]) for k in kept])
    moments = _moments(block, sites, ops, lattice, points, kept, images)
    return _Made(frac, owner, moments, wrong, notes)


def _images(
    site: _Site,
    rotations: IntArray,
    translations: FloatArray,
    lattice: FloatArray,
    reach: float,
) -> tuple[FloatArray, FloatArray]:
    """(3,) the site on its special position, and its (M, 3) distinct images in [0, 1)."""
    order = len(rotations)
    point = site.frac
    if order == 1:
        return point, _wrapped(point[None])
    for _ in range(3):
        delta = point @ rotations + translations - point
        delta -= np.rint(delta)
        length = np.linalg.norm(delta @ lattice, axis=1)
        near = length < reach
        point = point + delta[near].mean(axis=0)
        if length[near].max() < 1e-6:
            break
    count = int(near.sum())
    delta = point @ rotations + translations - point
    delta -= np.rint(delta)
    length = np.linalg.norm(delta @ lattice, axis=1)
    if order % count or length[near].max() > 1e-4 or length[~near].min(initial=9.0) < APART:
        raise RejectError(
            "images of a site are too close to be several atoms and too far apart to be one",
            f"site {site.label}",
        )
    everything = _wrapped(point @ rotations + translations)
    for shift in (0.0, 0.5):  # a coarse grid may cut through one place, two do not
        grid = np.rint(everything * 1e5 + shift).astype(np.int64) % 100_000
        _, first = np.unique(grid @ np.array([1, 200_003, 40_000_000_007]), return_index=True)
        if len(first) * count == order:
            return point, everything[np.sort(first)]
    raise RejectError(
        "images of a site are too close to be several atoms and too far apart to be one",
        f"site {site.label}",
    )


def _wrapped(frac: FloatArray) -> FloatArray:
    frac = frac - np.floor(frac)
    return np.where(frac > 1 - 1e-9, 0.0, frac)


def _one_each(
    sites: list[_Site], images: list[FloatArray], lattice: FloatArray
) -> tuple[list[int], list[str]]:
    """Sites that count: those listed twice once; and occupancies checked.

    Raises
    ------
    RejectError
        For partial occupancy.
    """
    notes: list[str] = []
    left = dict.fromkeys(range(len(sites)))
    occupancy = [site.occupancy for site in sites]
    longest = float(np.linalg.norm(lattice, axis=1).max())
    for k, j in _meeting(sites, images, lattice, longest):
        if k not in left or j not in left:
            continue
        if sites[j].number != sites[k].number:
            raise RejectError(
                "partial occupancy", f"sites {sites[k].label} and {sites[j].label} are one place"
            )
        if len(images[j]) != len(images[k]):
            continue
        del left[j]
        if min(occupancy[k], occupancy[j]) > 1 - FULL:
            if sites[j].label != sites[k].label:
                notes.append(f"sites {sites[k].label} and {sites[j].label} are one, taken once")
        else:
            occupancy[k] += occupancy[j]
    for k in left:
        if abs(occupancy[k] - 1) > FULL:
            what = "partial occupancy" if occupancy[k] < 1 else "occupancy above 1"
            raise RejectError(what, f"site {sites[k].label} has occupancy {occupancy[k]:g}")
    return list(left), _counted(notes)


def _meeting(
    sites: list[_Site], images: list[FloatArray], lattice: FloatArray, longest: float
) -> list[tuple[int, int]]:
    """Pairs of sites of which an image of one lies on an image of the other."""
    if len(sites) == 1:
        return []
    from scipy.spatial import cKDTree

    frac = np.concatenate(images)
    owner = np.repeat(np.arange(len(images)), [len(image) for image in images])
    limit = np.array([max(SAME, min(2 * 10.0**-site.digits * longest, NEAR[0])) for site in sites])
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    reach = 2 * np.pi * float(limit.max()) * float(np.linalg.norm(1 / heights))
    # on a torus, neighbours across the faces of the cell are near
    torus = np.concatenate([np.cos(2 * np.pi * frac), np.sin(2 * np.pi * frac)], axis=1)
    pairs = cKDTree(torus).query_pairs(min(reach, 7.0), output_type="ndarray")
    if not len(pairs):
        return []
    one, other = owner[pairs[:, 0]], owner[pairs[:, 1]]
    delta = frac[pairs[:, 0]] - frac[pairs[:, 1]]
    delta -= np.rint(delta)
    close = np.linalg.norm(delta @ lattice, axis=1) < np.minimum(limit[one], limit[other])
    close &= one != other
    found = np.sort(np.column_stack([one[close], other[close]]), axis=1)
    return [tuple(pair) for pair in np.unique(found, axis=0).tolist()]


def _counted(notes: list[str]) -> list[str]:
    return (
        notes if len(notes) <= 3 else [*notes[:2], f"{len(notes) - 2} more sites are listed twice"]
    )


# --- what comes along ---------------------------------------------------------------------------


def _moments(
    block: _Block,
    sites: list[_Site],
    ops: Operations,
    lattice: FloatArray,
    points: list[FloatArray],
    kept: list[int],
    images: list[FloatArray],
) -> FloatArray | None:
    """(N, 3) Cartesian moments [μB], None without any."""
    labels = block.values.get("_atom_site_moment_label")
    axes = [block.values.get(f"_atom_site_moment_crystalaxis_{axis}") for axis in "xyz"]
    if labels is None or any(axis is None or len(axis) != len(labels) for axis in axes):
        return None
    unit = lattice / np.linalg.norm(lattice, axis=1)[:, None]
    of = {}
    for k, label in enumerate(labels):
        along = [_number(axis[k], f"the moment of {label}") for axis in axes if axis is not None]
        of[label] = np.array(along) @ unit
    inverse = np.linalg.inv(lattice)
    turns = [inverse @ w.T @ lattice * round(float(np.linalg.det(w))) * r for w, r in zip(
        ops.rotations, ops.reversal, strict=True)]  # fmt: skip
    result = []
    for k in kept:
        moment = of.get(sites[k].label, np.zeros(3))
        everything = points[k] @ np.swapaxes(ops.rotations, 1, 2) + ops.translations
        delta = images[k][:, None] - everything
        delta -= np.rint(delta)
        which = ((delta @ lattice) ** 2).sum(axis=2).argmin(axis=1)
        result += [moment @ turns[h] for h in which]
    return np.array(result)


def _oxidation(block: _Block, sites: list[_Site], owner: IntArray) -> FloatArray | None:
    """(N,) oxidation states from the table of atom types, or the charges of type symbols."""
    names = block.values.get("_atom_type_symbol", [])
    states = block.values.get("_atom_type_oxidation_number", [])
    table = {}
    for name, state in zip(names, states, strict=False):
        if re.fullmatch(r"[+-]?\d+(\.\d+)?", state):
            table[name] = float(state)
    if not table:
        for site in sites:
            charge = re.fullmatch(r"[A-Za-z]+(?:(\d*)([+-])|([+-])(\d+))", site.type_symbol)
            if charge:
                size = float(charge[1] or charge[4] or 1)
                table[site.type_symbol] = -size if "-" in (charge[2], charge[3]) else size
    if not table or not any(site.type_symbol in table for site in sites):
        return None
    of_site = np.array([table.get(site.type_symbol, np.nan) for site in sites])
    return of_site[owner]
