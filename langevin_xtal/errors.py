"""Everything langevin-xtal raises on purpose, in one tree.

.. code-block:: text

    LangevinXtalError
    ├─ InputError            what the user handed in; the command line exits with 2
    │  ├─ LatticeError       a cell that is singular or has the wrong shape
    │  ├─ SymmetryError      a space group that does not exist, or does not fit the cell
    │  ├─ RequestError       elements, sites or formula that cannot be asked for
    │  ├─ DataError          a structure file or packed dataset that cannot be used
    │  ├─ CheckpointError    weights that are truncated, foreign or of another version
    │  └─ MissingPackageError an optional package that is not installed
    ├─ GraphError            a crystal too large for the multigraph's stated limits
    ├─ SamplingError         chains that diverged more often than they may
    └─ BackendError          an explicitly requested graph builder that is not available

Messages name the input, say what was wrong, and what would be right. Warnings of the package are
:class:`LangevinXtalWarning`.
"""

from __future__ import annotations


class LangevinXtalError(Exception):
    """Root of the tree: catch this to catch everything the package raises on purpose."""

    exit_code: int = 1
    """Of the command line."""


class LangevinXtalWarning(UserWarning):
    """Something that its user should know, while the work goes on."""


class InputError(LangevinXtalError, ValueError):
    """Something the caller handed in cannot be used."""

    exit_code = 2


class LatticeError(InputError):
    """A cell that is singular, not finite or at odds with its crystal system."""


class SymmetryError(InputError):
    """A space group that does not exist, or operations that do not fit the cell."""


class RequestError(InputError):
    """Elements, site counts or a formula that cannot be asked for."""


class DataError(InputError):
    """A structure file or packed dataset that cannot be read."""


class CheckpointError(InputError):
    """Weights that are truncated, foreign or of another version."""


class MissingPackageError(InputError):
    """An optional package that is not installed."""


class GraphError(LangevinXtalError):
    """A crystal beyond the stated limits of the multigraph builders."""


class SamplingError(LangevinXtalError):
    """Chains that diverged more often than they may."""


class BackendError(LangevinXtalError):
    """An explicitly requested graph builder that is not available here."""


class RejectError(Exception):
    """A structure that cannot be used; the reason is without numbers that vary."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason
