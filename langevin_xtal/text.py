"""Text that leaves the program: without passwords and keys, and harmless where it arrives."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST_SECRET = 6
"""Letters; shorter passwords are hidden in addresses only: as words they may be anything."""
KEY_VARIABLE = "MP_API_KEY"
"""Environment variable with the user's key of the Materials Project."""
_VARIABLES = (KEY_VARIABLE, "PMG_MAPI_KEY", "PGPASSWORD")

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,3})(\S+)")
_POSTGRES = ("postgresql:", "postgres:")
_DATABASE = re.compile(r"(?i)postgres(?:ql)?(?:\+[a-z0-9]+)?:/+")
_NAMED = re.compile(
    r"(?i)\b((?:ssl)?password|passwd|pwd|passphrase|(?:x-)?api[-_ ]?key|token)"
    r"(%3D|[\"']?\s*[=:]\s*)('(?:[^'\\]|\\.)*'?|\"[^\"]*\"?|[^\s&,;]+)"
)
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")

_secrets: set[str] = set()


def is_address(source: str | os.PathLike[str]) -> bool:
    """Whether ``source`` names a PostgreSQL database rather than a file.

    In capitals too, and where a path has made one slash of two.
    """
    return _DATABASE.match(str(source)) is not None


def address_of(source: str | os.PathLike[str]) -> str:
    """An address as PostgreSQL's library takes it."""
    return _DATABASE.sub("postgresql://", str(source))


def learn_secrets(texts: Iterable[str]) -> None:
    """Hide from now on the passwords of the addresses in ``texts``, wherever they appear.

    Together with those in the environment variables of this program and of PostgreSQL.
    """
    for name in _VARIABLES:
        learn_secret(os.environ.get(name, ""))
    for text in texts:
        for found in _passwords(text):
            learn_secret(found)


def learn_secret(secret: str) -> None:
    """Hide a password or key from now on, as it stands and percent-decoded."""
    _secrets.update(s for s in (secret.strip(), unquote(secret).strip()) if s)


def hide_secrets(text: str) -> str:
    """The text without the passwords of its addresses, and without those known to this process."""
    for secret in sorted(_secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    text = _ADDRESS.sub(lambda found: found[1] + _without_password(found[1], found[2]), text)
    return _NAMED.sub(rf"\1\2{HIDDEN}", text)


def printable(text: str) -> str:
    """The text on one line or several, without what steers a terminal, and without secrets."""
    lines = hide_secrets(text).split("\n")
    return "\n".join(
        "".join(c if c.isprintable() else _instead(c) for c in line) for line in lines
    )


def cell_text(value: object) -> str:
    """A value as the cell of a CSV file: one line, and no formula where a spreadsheet opens it.

    Text that a spreadsheet would run is preceded by an apostrophe; numbers stay as they are.
    """
    text = " ".join(printable("" if value is None else str(value)).split("\n"))
    if len(text) > 1 and text.startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def _instead(letter: str) -> str:
    return " " if letter in "\t\r\v\f" or unicodedata.category(letter) == "Zs" else "?"


def _without_password(scheme: str, rest: str) -> str:
    before, at, after = rest.rpartition("@")
    user, colon, _ = (before if at else rest).partition(":")
    if at and colon:
        return f"{user}:{HIDDEN}@{after}"
    return f"{user}:{HIDDEN}" if not at and _lacks_host(scheme, rest) else rest


def _lacks_host(scheme: str, rest: str) -> bool:
    """Whether an address ends with a password: what follows the colon is no port."""
    user, colon, port = rest.partition(":")
    if not colon or not scheme.lower().startswith(_POSTGRES) or rest.startswith("["):
        return False
    is_port = re.match(r"[0-9]*(?:[/?#,;.)'\"]|$)", port)
    return is_port is None and not re.search(r"[/?#]", user)


def unclear_password(address: str) -> bool:
    """Whether a password holds what ends it in an address, so that others see parts of it."""
    unclear = re.compile(r"[/@?#\[\]:\s]|%(?![0-9A-Fa-f]{2})")
    scheme, _, rest = address.partition(":")
    if _lacks_host(f"{scheme}:", rest.lstrip("/")) and "@" not in rest:
        return True
    return any(unclear.search(password) for password in _passwords(address))


def _passwords(text: str) -> list[str]:
    """Passwords in an argument that is, or holds, an address."""
    found = [match[3].strip("'\"") for match in _NAMED.finditer(text)]
    address = re.search(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,3}(.+)", text, re.DOTALL)
    if address is not None:
        before, at, _ = address[1].rpartition("@")
        if not at and _lacks_host(address[0].partition(":")[0] + ":", address[1]):
            before, at = address[1], "@"
        _, colon, password = before.partition(":")
        if at and colon:
            found.append(password)
    return found
