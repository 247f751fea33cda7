"""``python -m langevin_xtal``: the command, also where ``torchrun`` wants a module."""

from __future__ import annotations

import io
import os
import sys

from langevin_xtal.cli import main


class _NoTerminal(io.TextIOWrapper):
    """Errors come through; progress bars, which ask for a terminal, do not."""

    def isatty(self) -> bool:
        """Never."""
        return False


def _keep_quiet() -> None:
    """Of the processes ``torchrun`` starts, the first speaks for all."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    sys.stderr = _NoTerminal(sys.stderr.buffer, "utf-8", "backslashreplace", line_buffering=True)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        _keep_quiet()
    main()
