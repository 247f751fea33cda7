"""Optional packages, imported when needed, and what users name as ``module:attribute``."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from langevin_xtal.errors import InputError, MissingPackageError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """The module, imported now.

    Parameters
    ----------
    module
        Such as ``"chgnet.model"``.
    extra
        Of ``setup.cfg``, that brings it.
    purpose
        What needs it, for the message.

    Raises
    ------
    MissingPackageError
        When it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingPackageError(
            f"{purpose} needs the package {package} ({error}); install it with: "
            f"pip install 'langevin-xtal[{extra}]'"
        ) from None


def named(name: str, kind: str, known: str, purpose: str) -> Any:
    """What a user names as ``module:attribute``: something that can be called.

    Parameters
    ----------
    name
        As the user wrote it.
    kind
        Such as ``"potential"``, for the message.
    known
        Names that are no such address, for the message.
    purpose
        What it is to do when called, for the message.

    Raises
    ------
    InputError
        Where it is no such address, cannot be imported or cannot be called.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise InputError(
            f"{kind} {name!r} is unknown: use {known}, or 'module:attribute' for {purpose}"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} {name!r} cannot be imported: {error}") from None
    if not callable(found):
        raise InputError(f"{kind} {name!r} is not something that can be called")
    return found
