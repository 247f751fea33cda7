"""The command ``langevin-xtal``; its exit codes are :data:`EXIT_CODES`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from langevin_xtal import signals
from langevin_xtal.cli.terminal import echo, spoken_warnings
from langevin_xtal.errors import LangevinXtalError
from langevin_xtal.text import learn_secrets, printable
from langevin_xtal.version import __version__

COMMANDS = {
    "sample": "langevin_xtal.cli.sample:sample",
    "search": "langevin_xtal.cli.search:search",
    "campaign": "langevin_xtal.cli.campaign:campaign",
    "relax": "langevin_xtal.cli.relax:relax",
    "hull": "langevin_xtal.cli.hull:hull",
    "phonons": "langevin_xtal.cli.phonons:phonons",
    "export": "langevin_xtal.cli.export:export",
    "collect": "langevin_xtal.cli.collect:collect",
    "solve": "langevin_xtal.cli.solve:solve",
    "xrd": "langevin_xtal.cli.solve:xrd",
    "predict": "langevin_xtal.cli.predict:predict",
    "report": "langevin_xtal.cli.report:report",
    "train": "langevin_xtal.cli.train:train",
    "evaluate": "langevin_xtal.cli.evaluate:evaluate",
    "data": "langevin_xtal.cli.data:data",
    "model": "langevin_xtal.cli.model:model",
    "bench": "langevin_xtal.cli.bench:bench",
}

EXIT_CODES = {
    0: "done; what was left out, if anything, was listed",
    1: "failure: the work was begun and could not be done (nothing came of it, a full disk, a "
    "lost server, no network, too little memory)",
    2: "bad input: an option, a file, a folder or an address that cannot be used",
    130: "interrupted (Ctrl-C, SIGINT)",
    143: "terminated (SIGTERM)",
}

LONGEST_MESSAGE = 500


_WRONG_PLACE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
)


class LazyCommands(click.Group):
    """Imports a command's module when it is asked for, so ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="langevin-xtal")
def cli() -> None:
    """Candidate crystals from elements and a space group.

    \b
    Example:
      langevin-xtal sample --elements Cu,Si,K --sg 62 --n 16 --out candidates/
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every expected failure is one sentence on stderr."""
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # its C code writes each retry to stderr
    try:
        signals.watch_signals()
        code = run(arguments)
        signals.raise_no_more()
    except KeyboardInterrupt as error:  # before the command began, or after it
        code = _fail(signals.sentence_of(error), signals.code_of(error))
    if signals.came():
        signals.leave(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """As :func:`main`, returning the exit code."""
    args = sys.argv[1:] if arguments is None else list(arguments)
    learn_secrets(args)
    try:
        with spoken_warnings():
            code = cli.main(args, prog_name="langevin-xtal", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message())
        return 0
    except click.UsageError as error:
        return _fail(error.format_message(), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error
        return _fail(signals.sentence_of(cause), signals.code_of(cause))
    except LangevinXtalError as error:
        return _fail(str(error), error.exit_code)
    except PermissionError as error:
        return _fail(f"{error.filename} cannot be written or read: permission denied", 2)
    except OSError as error:
        text = f"{error.filename or 'input or output'}: {error.strerror or error}"
        return _fail(text, 2 if error.errno in _WRONG_PLACE else 1)
    except MemoryError:
        return _fail("there is too little memory for this; ask for less at a time", 1)
    except Exception as error:
        if not signals.came():
            raise
        return _fail(str(error), 1)


def _fail(message: str, code: int) -> int:
    if signals.came():  # some libraries make another error of an interruption
        message, code = signals.sentence_of(None), signals.code_of(None)
    # hidden before the line is cut, which may cut an address
    line = printable(" ".join(message.split()))
    line = line if len(line) <= LONGEST_MESSAGE else f"{line[:400]} … {line[-80:]}"
    echo(f"Error: {line}", err=True)
    return code
