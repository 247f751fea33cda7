"""Options and parameter types shared by the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import click

from langevin_xtal.cli.terminal import Pace, echo, lines
from langevin_xtal.config import fields
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.errors import InputError
from langevin_xtal.text import KEY_VARIABLE, is_address, learn_secret, printable

if TYPE_CHECKING:
    from langevin_xtal.cluster import DaskEngine
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.symmetry.groups import SpaceGroup

    ParamType = click.ParamType[object, object]
    PathType = click.Path[str | Path]
else:
    ParamType = click.ParamType
    PathType = click.Path

Command = TypeVar("Command", bound=Callable[..., object])


class Decorator(Protocol):
    """What adds options to a command."""

    def __call__(self, command: Command, /) -> Command:
        """The command with them."""
        ...


MOST_WORKERS = 1024
"""Processes or threads."""


seed = click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu or cuda.", metavar="DEVICE"
)
threads = click.option(
    "--threads",
    type=click.IntRange(1, MOST_WORKERS),
    help="CPU threads.  [default: all; train leaves one to prepare batches]",
    metavar="N",
)


model = click.option("--model", default="small", show_default=True, help="Shipped name or file.")
workers = click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Processes.  [default: one per CPU]",
    metavar="N",
)


def of_config(
    config: type[fields.Dataclass],
    *names: str,
    flags: Mapping[str, str] | None = None,
    types: Mapping[str, object] | None = None,
    into: str | None = None,
) -> Decorator:
    """Options for fields of a configuration, in this order: default, range and help are theirs.

    Parameters
    ----------
    names
        Fields; all that have a setting by default.
    flags
        Names of options that differ from those of their fields, such as ``--prior-epochs``.
    types
        Of fields that are no number, text or one of several choices: what click takes for them.
    into
        Name of one argument that is the configuration itself, in place of its fields.
    """

    chosen = names or fields.names(config)

    def decorate(command: Command) -> Command:
        if into is not None:
            command = gathered(config, *chosen, into=into)(command)
        for name in reversed(chosen):
            option = _option(config, name, (flags or {}).get(name), (types or {}).get(name))
            command = option(command)
        return command

    return decorate


def gathered(
    kind: Callable[..., object], *names: str, into: str, copied: Collection[str] = ()
) -> Decorator:
    """One argument of a command in place of several: ``kind`` of those named.

    Parameters
    ----------
    into
        Name of the argument.
    copied
        Those of the names that stay arguments as well.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**given: object) -> object:
            own = {name: given[name] if name in copied else given.pop(name) for name in names}
            return command(**given, **{into: kind(**own)})

        return cast(Command, run)

    return decorate


def _option(
    config: type[fields.Dataclass], name: str, flag: str | None, kind: object
) -> Decorator:
    field, said = fields.setting_of(config, name)
    declared = [flag or "--" + name.replace("_", "-")]
    if said.flag and flag is None:
        declared = [said.flag, name]
    is_flag = field.type == "bool"
    return click.option(
        *declared,
        is_flag=is_flag,
        type=None if is_flag else kind or _type_of(str(field.type), said),
        default=field.default,
        show_default=field.default is not None and said.shown and not is_flag,
        help=said.help or None,
        metavar=said.metavar,
    )


def _type_of(annotation: str, said: fields.Setting) -> object:
    """What click takes for a field."""
    if said.choices:
        return click.Choice(said.choices)
    if "float" in annotation:
        if said.above is not None:
            return click.FloatRange(min=said.above, max=said.high, min_open=True)
        return click.FloatRange(min=said.low, max=said.high)
    if "int" in annotation:
        return click.IntRange(_whole(said.low), _whole(said.high))
    return str


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def preset_of(presets: Mapping[str, Mapping[str, object]], help: str) -> Decorator:
    """``--preset``: other defaults for the options of a command, by name."""

    def apply(ctx: click.Context, param: click.Parameter, value: str) -> None:
        ctx.default_map = {**(ctx.default_map or {}), **presets[value]}

    return click.option(
        "--preset",
        type=click.Choice(tuple(presets)),
        default="default",
        show_default=True,
        is_eager=True,
        expose_value=False,
        callback=apply,
        help=help,
    )


def say_settings(groups: str | None) -> None:
    """Say which of the space groups named are settings other than the package's."""
    from langevin_xtal.model.groups import setting_notes

    for note in setting_notes(groups or ""):
        echo(f"Note: {note}", err=True)


def say_setting(setting: str, groups: Iterable[SpaceGroup]) -> None:
    """Say from which setting coordinates are transformed, where that is not the package's."""
    from langevin_xtal.symmetry.settings import setting_of_group

    for group in groups:
        given = setting_of_group(setting, group.number)
        if not given.is_default:
            echo(f"Note: transformed from {given} to {given.default}", err=True)


def say_unknown(elements: Iterable[str], model: CrystalModel) -> None:
    """Say which of the elements no training crystal of the model has, where it knows."""
    if model.settings is None:
        return
    numbers = {atomic_number(symbol): symbol for symbol in elements}
    unknown = [numbers[z] for z in model.settings.unknown_elements(sorted(numbers))]
    if unknown:
        echo(
            f"Note: no training crystal of model {model.name} has {', '.join(unknown)}: "
            "distances and volumes of such candidates are guesses",
            err=True,
        )


class LocalPath(PathType):
    """A file or folder, as a Path; addresses of databases are refused."""

    def __init__(
        self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True
    ) -> None:
        super().__init__(exists, file_okay, dir_okay, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | Path:
        """The path."""
        _refuse_address(value, param, "takes files and folders only")
        return super().convert(value, param, ctx)


class Source(LocalPath):
    """A file or folder as a Path, or the address of a store in PostgreSQL as text."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | Path:
        """The path or the address."""
        return str(value) if is_address(value) else super().convert(value, param, ctx)


def _refuse_address(
    value: str | os.PathLike[str], param: click.Parameter | None, why: str
) -> None:
    if is_address(value) or "password=" in str(value).lower():
        name = "this option"
        if param is not None:
            is_option = param.param_type_name == "option"
            name = param.opts[0] if is_option else str(param.name).upper()
        raise InputError(f"{value} is the address of a database; {name} {why}")


def secret(key: str) -> str:
    """A key itself, from the environment for ``env``; not shown from now on."""
    if key != "env":
        learn_secret(key)
        return key
    found = os.environ.get(KEY_VARIABLE, "")
    learn_secret(found)
    if not found:
        raise InputError(f"--key env needs the environment variable {KEY_VARIABLE}; it is not set")
    return found


def engine(command: Command) -> Command:
    """``--engine``, ``--scheduler`` and ``--cluster``: where work is done; see
    :func:`chosen_engine`."""
    for option in (
        click.option(
            "--cluster",
            type=LocalPath(exists=True, dir_okay=False),
            help="With dask: a TOML file of the jobs to submit to SLURM, PBS, LSF or SGE.",
            metavar="FILE",
        ),
        click.option(
            "--scheduler",
            help="With dask: address of a running scheduler, such as tcp://10.0.0.1:8786.",
            metavar="ADDRESS",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "dask"]),
            default="local",
            show_default=True,
            help="Where work is done. local: processes of this computer; dask: workers of a Dask "
            "scheduler.",
        ),
    ):
        command = option(command)
    return command


def on_engine(command: Command) -> Command:
    """The options of :func:`engine`; the command's parallel work is done where they say."""

    @wraps(command)
    def run(
        *args: object, engine: str, scheduler: str | None, cluster: Path | None, **given: object
    ) -> object:
        with chosen_engine(engine, scheduler, cluster):
            return command(*args, **given)

    return cast(Command, engine(run))


@contextmanager
def chosen_engine(
    engine: str, scheduler: str | None, cluster: Path | None
) -> Iterator[DaskEngine | None]:
    """The engine of the options; work of the block is done there. None for this computer.

    Raises
    ------
    InputError
        For options that contradict each other, and where no scheduler can be had.
    """
    if engine == "local":
        for name, value in (("--scheduler", scheduler), ("--cluster", cluster)):
            if value is not None:
                raise InputError(f"{name} needs --engine dask")
        yield None
        return
    if (scheduler is None) == (cluster is None):
        raise InputError("--engine dask needs one of --scheduler ADDRESS and --cluster FILE")
    import logging

    from langevin_xtal.cluster import dask_engine, load_cluster
    from langevin_xtal.parallel import use_engine

    for name in ("distributed", "asyncio"):  # what matters is said in words
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = None if cluster is None else load_cluster(cluster)
    with dask_engine(scheduler, config) as workers, use_engine(workers):
        if not workers.workers():
            echo("waiting for a worker; Ctrl-C ends it", err=True)
        workers.wait()
        if workers.dashboard:
            echo(f"{workers.workers()} workers; dashboard at {workers.dashboard}", err=True)
        yield workers


def output(
    help: str,
    metavar: str,
    *,
    default: str | None = None,
    dir_okay: bool = True,
    address: bool = False,
) -> Decorator:
    """``--out``; required without a default.

    Parameters
    ----------
    address
        Whether it may be the address of a store.
    """
    # click takes a default of None, where it is given, for a value
    own = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option(
        "--out",
        type=str if address else LocalPath(dir_okay=dir_okay),
        help=help,
        metavar=metavar,
        **own,
    )


def output_folder(default: str) -> Decorator:
    """``--out``: a folder, made when missing."""
    return output("Folder to write to.", "FOLDER", default=default)


def output_file(default: str, help: str) -> Decorator:
    """``--out``: a file."""
    return output(help, "FILE", default=default)


def cache_folder(help: str) -> Decorator:
    """``--cache``: a folder of results."""
    return click.option(
        "--cache",
        type=LocalPath(file_okay=False),
        help=f"{help}  [default: ~/.cache/langevin-xtal]",
        metavar="FOLDER",
    )


def project_key(help: str) -> Decorator:
    """``--key``: of the Materials Project."""
    return click.option("--key", help=f"{help}; 'env' reads {KEY_VARIABLE}.", metavar="KEY")


def replacing(help: str) -> Decorator:
    """``--force``."""
    return click.option("--force", is_flag=True, help=help)


def set_threads(count: int) -> None:
    """Limit torch to ``count`` threads."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, fed with (done, planned); lines when stderr is no terminal."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        pace = Pace()
        with lines(pace):
            yield partial(pace.update, printable(title))
        return
    with tqdm(desc=printable(title), unit=unit, leave=False, dynamic_ncols=True) as bar:

        def update(done: int, planned: int) -> None:
            bar.total = planned or None
            bar.update(done - bar.n)

        yield update


@contextmanager
def stage_bars(of: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each stage in turn; lines when stderr is no terminal.

    Parameters
    ----------
    of
        What the stages belong to; begins their titles.
    """
    from tqdm import tqdm

    begin = f"{of}: " if of else ""
    if not sys.stderr.isatty():
        pace = Pace()
        with lines(pace):
            yield lambda stage, done, planned: pace.update(printable(begin + stage), done, planned)
        return
    bar: tqdm | None = None
    title = ""

    def update(stage: str, done: int, planned: int) -> None:
        nonlocal bar, title
        if bar is None or stage != title:
            if bar is not None:
                bar.close()
            # what was done before does not count for the rate
            bar = tqdm(
                desc=printable(begin + stage), total=planned, initial=done, leave=False,
                dynamic_ncols=True,
            )  # fmt: skip
            title = stage
        bar.total = planned
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
