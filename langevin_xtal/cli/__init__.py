"""The command ``langevin-xtal``. Exit codes: 0 ok, 1 failure, 2 bad input, 130 interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.version import __version__

COMMANDS = {
    "sample": "langevin_xtal.cli.sample:sample",
    "search": "langevin_xtal.cli.search:search",
    "relax": "langevin_xtal.cli.relax:relax",
    "hull": "langevin_xtal.cli.hull:hull",
    "phonons": "langevin_xtal.cli.phonons:phonons",
    "export": "langevin_xtal.cli.export:export",
    "report": "langevin_xtal.cli.report:report",
    "train": "langevin_xtal.cli.train:train",
    "evaluate": "langevin_xtal.cli.evaluate:evaluate",
    "data": "langevin_xtal.cli.data:data",
    "model": "langevin_xtal.cli.model:model",
    "bench": "langevin_xtal.cli.bench:bench",
}

LONGEST_MESSAGE = 500


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
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """As :func:`main`, returning the exit code."""
    try:
        args = None if arguments is None else list(arguments)
        code = cli.main(args, prog_name="langevin-xtal", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        return _fail(error.format_message(), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; what was finished is kept", 130)
    except InputError as error:
        return _fail(str(error), 2)
    except LangevinXtalError as error:
        return _fail(str(error), 1)
    except PermissionError as error:
        return _fail(f"{error.filename} cannot be written or read: permission denied", 2)
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())  # names of files and structures may hold anything
    line = line if len(line) <= LONGEST_MESSAGE else f"{line[:400]} … {line[-80:]}"
    click.echo("Error: " + "".join(c if c.isprintable() else "?" for c in line), err=True)
    return code
