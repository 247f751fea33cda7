"""Optional packages: imported when needed, with the command that installs them when missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from langevin_xtal.errors import MissingPackageError


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
