"""The 530 settings of the 230 space groups, and what a spelling of a space group stands for.

A *setting* is a space-group type with a choice of axes and origin: ``P 1 21/n 1`` and
``P 1 21/c 1`` are two settings of type 14. Hall numbers 1 to 530, symbols and operations are
spglib's. The package itself computes in the first setting of each type
(:class:`~langevin_xtal.symmetry.groups.SpaceGroup`); :attr:`Setting.change` leads there.

>>> [s.hall_number for s in settings_of("P21/n")]
[82, 85, 88]
>>> [str(s) for s in settings_of("Fd-3m:2")]
['F d -3 m (227, choice 2)']
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.errors import SymmetryError

COUNT = 530
"""Settings in the table."""

_LETTERS = {"s": "1", "z": "2"}
"""Origin choices as the ICSD writes them after a symbol."""

_MOST = 200
"""Longest text that is looked at."""


class SettingTable(NamedTuple):
    """All settings end to end; Hall number n owns the operations ``start[n-1] : start[n]``."""

    number: NDArray[np.int64]  #: (530,) space-group type
    choice: tuple[str, ...]  #: (530,) such as ``'b1'``, ``'2'``, ``'H'``, ``''``
    hall: tuple[str, ...]  #: (530,) Hall symbols
    type_symbol: tuple[str, ...]  #: (530,) short symbol of the type
    symbol: tuple[str, ...]  #: (530,) H-M symbol of the setting, with all axes where monoclinic
    full: tuple[str, ...]  #: (530,) full H-M symbol of the setting
    schoenflies: tuple[str, ...]  #: (530,)
    others: tuple[tuple[str, ...], ...]  #: (530,) further H-M symbols, such as ``'C m c a'``
    rotations: NDArray[np.int64]  #: (O, 3, 3) integer matrices W
    translations24: NDArray[np.int64]  #: (O, 3) w in units of 1/24, in [0, 24)
    start: NDArray[np.int64]  #: (531,) offsets
    change: NDArray[np.float64]  #: (530, 3, 3) P of ``x' = P x + p``
    shift: NDArray[np.float64]  #: (530, 3) p


@cache
def setting_table() -> SettingTable:
    """The shipped table, read once."""
    source = resources.files("langevin_xtal.symmetry").joinpath("settings.npz")
    with source.open("rb") as handle, np.load(handle, allow_pickle=False) as z:
        counts = z["counts"].astype(np.int64)
        return SettingTable(
            number=z["number"].astype(np.int64),
            choice=tuple(map(str, z["choice"])),
            hall=tuple(map(str, z["hall"])),
            type_symbol=tuple(map(str, z["type_symbol"])),
            symbol=tuple(map(str, z["symbol"])),
            full=tuple(map(str, z["full"])),
            schoenflies=tuple(map(str, z["schoenflies"])),
            others=tuple(tuple(filter(None, str(names).split("|"))) for names in z["others"]),
            rotations=z["rotations"].astype(np.int64),
            translations24=z["translations24"].astype(np.int64),
            start=np.concatenate([[0], np.cumsum(counts)]),
            change=z["change"] / 6.0,
            shift=z["shift"] / 24.0,
        )


@dataclass(frozen=True)
class Setting:
    """One of the 530 settings.

    Parameters
    ----------
    hall_number
        1 to 530, as spglib counts them.

    Raises
    ------
    SymmetryError
        For any other number.
    """

    hall_number: int

    def __post_init__(self) -> None:
        if not 1 <= self.hall_number <= COUNT:
            raise SymmetryError(f"Hall number {self.hall_number} does not exist: 1 to {COUNT} do")

    @property
    def number(self) -> int:
        """Number of the space-group type, 1 to 230."""
        return int(setting_table().number[self.hall_number - 1])

    @property
    def choice(self) -> str:
        """Of axes and origin, such as ``'b1'``, ``'2'`` or ``'H'``; empty where it is the only."""
        return setting_table().choice[self.hall_number - 1]

    @property
    def symbol(self) -> str:
        """H-M symbol of this setting, such as ``'P 1 2_1/n 1'`` or ``'P b n m'``."""
        return setting_table().symbol[self.hall_number - 1]

    @property
    def full(self) -> str:
        """Full H-M symbol, such as ``'P 2_1/n 2_1/m 2_1/a'``."""
        return setting_table().full[self.hall_number - 1]

    @property
    def hall(self) -> str:
        """Hall symbol."""
        return setting_table().hall[self.hall_number - 1]

    @property
    def rotations(self) -> NDArray[np.int64]:
        """(G, 3, 3) integer matrices W, the identity first."""
        return setting_table().rotations[self._own]

    @property
    def translations24(self) -> NDArray[np.int64]:
        """(G, 3) translations w in units of 1/24, in [0, 24)."""
        return setting_table().translations24[self._own]

    @property
    def translations(self) -> NDArray[np.float64]:
        """(G, 3) translations w as fractions."""
        return self.translations24 / 24.0

    @property
    def is_default(self) -> bool:
        """Whether the package computes in this setting."""
        numbers = setting_table().number
        return int(np.searchsorted(numbers, self.number)) + 1 == self.hall_number

    @property
    def default(self) -> Setting:
        """The setting of the same type that the package computes in."""
        return Setting(int(np.searchsorted(setting_table().number, self.number)) + 1)

    @property
    def change(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(3, 3) P and (3,) p with ``x' = P x + p`` for columns x, to the package's setting.

        The cell goes with it: for rows, ``lattice' = inv(P).T @ lattice``.
        """
        table, k = setting_table(), self.hall_number - 1
        return table.change[k], table.shift[k]

    def point_in_default(self, point: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) fractional coordinates of this setting, in the package's, in [0, 1)."""
        matrix, shift = self.change
        moved = (np.asarray(point, dtype=np.float64) @ matrix.T + shift) % 1.0
        return np.where(moved > 1.0 - 1e-12, 0.0, moved)  # rounding below a lattice point

    def lattice_in_default(self, lattice: ArrayLike) -> NDArray[np.float64]:
        """(3, 3) rows [Å] of a cell of this setting, in the package's."""
        moved: NDArray[np.float64] = np.linalg.inv(self.change[0]).T @ np.asarray(lattice)
        return moved

    def fits(self, lattice: NDArray[np.float64], tolerance: float = 0.02) -> bool:
        """Whether a cell (rows [Å]) has the shape of this setting, to a relative tolerance."""
        metric = lattice @ lattice.T
        lengths = np.sqrt(np.diag(metric))
        turned = np.swapaxes(self.rotations, 1, 2) @ metric @ self.rotations
        return bool((np.abs(turned - metric) <= 2 * tolerance * np.outer(lengths, lengths)).all())

    def __str__(self) -> str:
        choice = f", choice {self.choice}" if self.choice else ""
        return f"{self.symbol} ({self.number}{choice})"

    @property
    def _own(self) -> slice:
        start = setting_table().start
        return slice(int(start[self.hall_number - 1]), int(start[self.hall_number]))


def settings_of(text: str) -> tuple[Setting, ...]:
    """All settings that a spelling of a space group can stand for, the usual one first.

    Read are numbers (``"62"``, ``"227:2"``), Hermann-Mauguin symbols, short or full, of any
    setting (``"Pnma"``, ``"P b n m"``, ``"P 2_1/n"``, ``"P2(1)/c"``, ``"I 1 2/a 1"``), with the
    choice of origin or axes behind (``":2"``, ``":H"``, ``"Z"``), older names (``"Fm3m"``,
    ``"Cmca"``), Schoenflies (``"D2h^16"``) and Hall symbols; blanks, underscores and capitals do
    not matter. A number alone stands for every setting of the type.

    Raises
    ------
    SymmetryError
        When it stands for none; the message proposes the nearest.
    """
    found = _numbered(text) or lookup(text)
    if not found and len(text) <= _MOST:
        found = _table_lookup(_schoenflies(), _plain(text).replace("^", "").replace("-", ""))
        found = found or _table_lookup(_halls(), _hall_key(text))
    if not found:
        raise SymmetryError(_unknown(text))
    return tuple(map(Setting, found))


def lookup(text: str) -> tuple[int, ...]:
    """Hall numbers of the settings with this H-M symbol, none when it is not one."""
    if len(text) > _MOST:
        return ()
    by_symbol, key = _symbols(), _plain(text)
    if key in by_symbol:
        return by_symbol[key]
    old = _with_inversion(key)
    if old in by_symbol:
        return by_symbol[old]
    # the choice of origin or axes may follow without a colon
    split = re.fullmatch(r"(.+?)(?::|\(|/origin|,origin|origin)?([hrsz12])\)?", key)
    if split and ":" not in split[1]:
        choice = _LETTERS.get(split[2], split[2])
        for name in (split[1], _with_inversion(split[1])):
            if f"{name}:{choice}" in by_symbol:
                return by_symbol[f"{name}:{choice}"]
    symbol, colon, choice = key.partition(":")
    if colon:
        choice = _LETTERS.get(choice, choice)
        for name in (symbol, _with_inversion(symbol)):
            if f"{name}:{choice}" in by_symbol:
                return by_symbol[f"{name}:{choice}"]
    return ()


def hall_setting(text: str) -> Setting | None:
    """The setting with this Hall symbol as spglib writes it, None when there is none."""
    found = _table_lookup(_halls(), _hall_key(text))
    return Setting(found[0]) if found else None


def settings_of_number(number: int) -> tuple[Setting, ...]:
    """All settings of a space-group type, the package's first."""
    first, last = np.searchsorted(setting_table().number, [number, number + 1])
    return tuple(Setting(k + 1) for k in range(int(first), int(last)))


def setting_of_group(text: str, number: int) -> Setting:
    """The setting of a space-group type that a text names.

    Parameters
    ----------
    text
        The choice alone, as ``"2"``, ``"origin choice 2"``, ``"R"``, ``"rhombohedral axes"``,
        ``"b3"``, ``"unique axis c, cell choice 2"``, ``"cab"``; or a symbol of the setting, with
        its choice where there are several, as ``"P 1 21/n 1"``, ``"Pbnm"``, ``"Fd-3m:2"``; or a
        Hall symbol; or a Hall number, as ``"526"``. ``hall`` before a Hall symbol says that it is
        no H-M symbol, where it could be one: ``"hall P 2"`` has the unique axis c.
    number
        Of the type.

    Raises
    ------
    SymmetryError
        Where the text names no setting of this type, or several.
    """
    settings = settings_of_number(number)
    found = [s for s in settings if s.choice.lower() in _choices(text, number)]
    hall = re.fullmatch(r"\s*hall(?:\s*(?:number|symbol))?\s*:?\s*(.+)", text, re.IGNORECASE)
    named = hall[1] if hall else text.strip()
    if not found and named.isdecimal() and len(named) < 4:
        found = [s for s in settings if s.hall_number == int(named)]
    by_hall = None if found or named.isdecimal() else hall_setting(named)
    if by_hall is not None and (hall or number not in {s.number for s in _symbol_settings(named)}):
        found = [s for s in settings if s == by_hall]
    if not found and not hall and not named.isdecimal():
        spelled = settings_of(text)
        found = [s for s in spelled if s.number == number]
        if not found:
            raise SymmetryError(
                f"setting {named!r} is one of group {spelled[0].number}, not of {number}; "
                f"give one of {_listed(settings)}"
            )
        if len(found) == len(settings) > 1:
            found = []  # it names the type
        found = found[:1]  # a short symbol means the usual axes
    if not found:
        raise SymmetryError(
            f"group {number} has no setting {text.strip()[:40]!r}; give one of {_listed(settings)}"
        )
    return found[0]


def setting_note(text: str) -> str:
    """One sentence where a spelling means a setting other than the package's, else nothing.

    Raises
    ------
    SymmetryError
        When the spelling stands for no group.
    """
    if _numbered(text) and ":" not in text:
        return ""
    found = settings_of(text)[0]
    if found.is_default or _plain(text) == _plain(
        setting_table().type_symbol[found.default.hall_number - 1]
    ):
        return ""
    return (
        f"{' '.join(text.split())} means {found.symbol}"
        + (f" (choice {found.choice})" if found.choice else "")
        + f", a setting of group {found.number}; structures are given in {found.default.symbol}"
        + (f" (choice {found.default.choice})" if found.default.choice else "")
    )


def _symbol_settings(text: str) -> tuple[Setting, ...]:
    return tuple(map(Setting, lookup(text)))


def _choices(text: str, number: int) -> tuple[str, ...]:
    """What the column ``choice`` may hold for a text that names a choice alone."""
    plain = re.sub(r"origin|unique|choice|cell|axis|axes|[\s,:]", "", text.lower())
    plain = {"hexagonal": "h", "rhombohedral": "r"}.get(plain, plain)
    plain = _LETTERS.get(plain, plain)
    if 3 <= number <= 15:  # the first cell choice, and the axis b, go without saying
        return plain, f"{plain}1", f"b{plain}"
    return (plain,) if plain != "abc" else ("",)


def _listed(settings: Sequence[Setting]) -> str:
    return ", ".join(s.choice or s.symbol.replace(" ", "") for s in settings)


def _numbered(text: str) -> tuple[int, ...]:
    """Of ``62``, ``No. 62`` or ``227:2``; none for anything else."""
    pattern = r"\s*(?:no\.?|nr\.?|sg|#)?\s*([0-9]{1,3})\s*(?::\s*(-?[a-z0-9-]{1,5}))?\s*"
    split = re.fullmatch(pattern, text.lower(), flags=re.ASCII)
    if not split or not 1 <= int(split[1]) <= 230:
        return ()
    choice = split[2] and _LETTERS.get(split[2], split[2])
    return tuple(
        s.hall_number
        for s in settings_of_number(int(split[1]))
        if choice is None or s.choice.lower() == choice
    )


_SUBSCRIPT = re.compile(r"\((\d)\)|~(\d)~|<sub>\s*(\d)\s*</sub>|\$?_\{(\d)\}\$?")
_BAR = re.compile(r"\\?(?:bar|overline)\s*\{?\s*(\d)\s*\}?")


@lru_cache(maxsize=4096)
def _plain(symbol: str) -> str:
    """A symbol without what does not matter: blanks, underscores, quotes, capitals."""
    text = unicodedata.normalize("NFKD", symbol)
    text = re.sub("(\\d)[\u0304\u0305\u0303]", r"-\1", text)  # an overlined digit
    text = _BAR.sub(r"-\1", text.replace("$", ""))
    text = text.translate({0x2212: "-", 0x2013: "-", 0x2010: "-", 0xAF: "-"})
    text = _SUBSCRIPT.sub(lambda m: next(filter(None, m.groups())), text)
    return re.sub(r"[\s'\"{}_]+", "", text).lower()


def _with_inversion(key: str) -> str:
    """Cubic symbols of old lack the bar: ``fm3m`` for ``fm-3m``, ``pa3`` for ``pa-3``."""
    return re.sub(r"^([pfi](?:[mnadbc]|2/[mnad]|4/[mn]|4[123]/[mnad]))3", r"\1-3", key)


@cache
def _symbols() -> dict[str, tuple[int, ...]]:
    """Plain H-M symbols to Hall numbers; with ``:choice`` where there is one."""
    table = setting_table()
    found: dict[str, dict[int, None]] = {}
    with_choice: dict[str, dict[int, None]] = {}
    for hall in range(1, COUNT + 1):
        k = hall - 1
        own = [table.symbol[k], table.full[k], *table.others[k]]
        own += [re.sub(r"(?<= )1(?= |$)", "", name) for name in own if _is_monoclinic(k)]
        keys = {_plain(name) for name in own}
        for key in keys:
            found.setdefault(key, {})[hall] = None
        choice = table.choice[k].lower()
        for key in keys | {_plain(table.type_symbol[k])}:
            for short in {choice, choice[:1] if choice[:1] in "12" else choice} - {""}:
                with_choice.setdefault(f"{key}:{short}", {})[hall] = None
    for key, halls in with_choice.items():
        # of 1 and 1cab, ':1' means those whose symbol it is
        exact = [h for h in halls if table.choice[h - 1].lower() == key.rpartition(":")[2]]
        found.setdefault(key, dict.fromkeys(exact or halls))
    claimed = set(found)
    for k in range(COUNT):  # the short symbol of a type, where no setting claims it
        if _plain(table.type_symbol[k]) not in claimed:
            found.setdefault(_plain(table.type_symbol[k]), {})[k + 1] = None
    return {key: tuple(halls) for key, halls in found.items()}


def _is_monoclinic(k: int) -> bool:
    return 3 <= int(setting_table().number[k]) <= 15


@cache
def _halls() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for k, symbol in enumerate(setting_table().hall):
        found.setdefault(_hall_key(symbol), (k + 1,))
    return found


def _hall_key(text: str) -> str:
    return re.sub(r"[\s_'=]+", " ", text.replace('"', "''").replace("''", '"')).strip().lower()


@cache
def _schoenflies() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for k, symbol in enumerate(setting_table().schoenflies):
        key = _plain(symbol).replace("^", "")
        found.setdefault(key, tuple(s.hall_number for s in settings_of_number(
            int(setting_table().number[k]))))  # fmt: skip
    return found


def _table_lookup(table: dict[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    return table.get(key, ())


def _unknown(text: str) -> str:
    from difflib import get_close_matches

    shown = text if len(text) < 40 else text[:40] + "…"
    near: list[str] = []
    if len(text) <= _MOST:
        table = setting_table()
        names = {
            _plain(name): name.replace(" ", "")
            for k in range(COUNT - 1, -1, -1)
            for name in (table.full[k], *table.others[k], table.symbol[k], table.type_symbol[k])
        }
        keys = get_close_matches(_plain(text), names, n=3, cutoff=0.6)
        near = list(dict.fromkeys(names[key] for key in keys))
    hint = f"; did you mean {' or '.join(near)}?" if near else " such as Pnma, Fm-3m or P6_3/mmc"
    return (
        f"space group {shown!r} is not known: give a number from 1 to 230 or an international "
        f"symbol{hint}"
    )
