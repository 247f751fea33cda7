"""What commands on structure files share: reading, refusing, and never overwriting unasked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.screening import FileRelaxOptions, RelaxOptions
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.files import (
    check_target,
    clear_left,
    replacing,
    unwritable,
    write_rows,
    write_text,
)

if TYPE_CHECKING:
    from langevin_xtal.crystal.cell import Cell
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.evaluation.cache import Cache
    from langevin_xtal.screen.hull import HullReferences

RECORD = "run.json"
SHOWN = 30
"""Rows of a table on the terminal; all are in the file."""

_FORMAT = f"{__name__}.file_format"


def _keep_format(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta[_FORMAT] = value or ""


def file_format(command: options.Command) -> options.Command:
    """``--format`` of the files that are read, which :func:`read_structures` takes notice of."""
    from langevin_xtal.structures.readers import FORMAT_NAMES

    return click.option(
        "--format",
        type=click.Choice(FORMAT_NAMES),
        help="Of files whose name and content do not tell what they are: "
        f"{', '.join(FORMAT_NAMES)}.",
        metavar="NAME",
        expose_value=False,
        callback=_keep_format,
    )(command)


def given_format() -> str:
    """What ``--format`` says; empty without it."""
    return str(click.get_current_context().meta.get(_FORMAT, ""))


def files(command: options.Command) -> options.Command:
    """Structure files, and ``--format``."""
    argument = click.argument("files", nargs=-1, required=True, type=options.Source())
    return argument(file_format(command))


potential = options.of_config(RelaxOptions, "potential")
second_references = click.option(
    "--second-references",
    type=options.LocalPath(exists=True, dir_okay=False),
    help="Table that hull build wrote for it.  [default: shipped, for chgnet and sevennet-0]",
    metavar="FILE",
)
cache = options.cache_folder("Folder where results are kept, so that nothing is computed twice.")
top = click.option("--top", type=click.IntRange(min=1), help="Only the best N.", metavar="N")
key = options.project_key("Key of the Materials Project, to take its phases as references")
force = options.replacing("Replace files that are there.")
fmax, steps, symprec = (
    options.of_config(FileRelaxOptions, name) for name in ("fmax", "steps", "symprec")
)


def references_of_second(second: str | None, path: Path | None) -> HullReferences | None:
    """Hull references of the potential of ``--second-opinion``; None, said, where it has none.

    Raises
    ------
    InputError
        Where the table is of another potential, or given without ``--second-opinion``.
    """
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.screen.potentials import load_potential

    if second is None:
        if path is not None:
            raise InputError("--second-references is of no use without --second-opinion")
        return None
    potential = load_potential(second)
    if path is not None:
        table = HullReferences.load(path)
        table.check(potential)
        return table
    try:
        return HullReferences.shipped(second)
    except InputError as error:
        echo(f"Note: no hull distance by the second potential: {error}", err=True)
        return None


def read_structures(
    paths: Sequence[Path | str],
    *,
    top: int | None = None,
    uses: Collection[str] = (),
) -> tuple[list[Entry], dict[str, str]]:
    """Structures of any source, each with an identifier of its own; and what is left out.

    Takes what :func:`~langevin_xtal.search.entries.read_entries` takes. Says on stderr what was
    assumed of a structure, which files were passed over, and what came along that the command
    does not use: ``uses`` names what it does, of ``moments``, ``fixed`` and ``oxidation``.

    Raises
    ------
    InputError
        When a file is missing, or none holds a structure that can be used.
    """
    from langevin_xtal.search.entries import rank_key, read_entries, with_distinct_ids
    from langevin_xtal.text import is_address

    entries: list[Entry] = []
    refused: dict[str, str] = {}
    kind = given_format()
    notes: dict[str, tuple[str, ...]] = {}
    passed_over: dict[str, str] = {}
    for path in paths:
        if not is_address(path) and not Path(path).exists():
            raise DataError(f"{path} does not exist")
    for path in paths:
        try:
            entries += read_entries(
                path,
                top=top,
                rejects=refused,
                notes=notes,
                passed_over=passed_over,
                file_format=kind,
            )
        except DataError as error:  # one bad file of many does not stop the rest
            if len(paths) == 1:
                raise
            refused[str(path)] = str(error)
    if not entries:
        name, reason = next(iter(refused.items()))
        raise InputError(reason if name in reason else f"{name}: {reason}")
    if top is not None and len(paths) > 1:
        entries = sorted(entries, key=rank_key)[:top]
    show_notes(notes, passed_over)
    show_unused(entries, uses)
    return list(with_distinct_ids(entries)), refused


def load_crystals(source: Path) -> PackedDataset:
    """Packed data, or structures of any kind packed in memory; says what is left out.

    Raises
    ------
    InputError
        When the source cannot be read or holds no usable structure.
    """
    from langevin_xtal.dataset.prepare import load_crystals as load

    data = load(source)
    if source.suffix.lower() != ".lxd":
        for reason, count in data.meta["rejects"].items():
            click.echo(f"Warning: {source}: {count} structures left out: {reason}", err=True)
    return data


def show_notes(notes: Mapping[str, Sequence[str]], passed_over: Mapping[str, str]) -> None:
    """What was assumed of structures, sentence by sentence, and what was no structure file."""
    names: dict[str, list[str]] = {}
    for name, sentences in notes.items():
        for sentence in sentences:
            names.setdefault(sentence, []).append(name)
    for sentence, whose in list(names.items())[:SHOWN]:
        more = f" and {len(whose) - 1} more" if len(whose) > 1 else ""
        echo(f"Note: {whose[0]}{more}: {sentence}", err=True)
    if len(names) > SHOWN:
        echo(f"Note: {len(names) - SHOWN} more remarks of this kind", err=True)
    if passed_over:
        shown = ", ".join(list(passed_over)[:8])
        more = f" and {len(passed_over) - 8} more" if len(passed_over) > 8 else ""
        echo(f"Note: no structure files, passed over: {shown}{more}", err=True)


def show_unused(entries: Sequence[Entry], uses: Collection[str]) -> None:
    """What came along with structures that the command has no use for."""
    kinds = {
        "moments": ("magnetic moments", [e for e in entries if e.moments is not None]),
        "fixed": ("constraints on atoms", [e for e in entries if e.fixed is not None]),
        "oxidation": ("oxidation states", [e for e in entries if e.oxidation is not None]),
    }
    for kind, (what, having) in kinds.items():
        if having and kind not in uses:
            which = having[0].uid + (f" and {len(having) - 1} more" if len(having) > 1 else "")
            echo(f"Note: {what} of {which} are not used by this command", err=True)


def known_to(entries: Sequence[Entry], potential: str) -> None:
    """Refuse structures when the potential knows none of them.

    Raises
    ------
    InputError
        When every structure has an element the potential does not know, or there is no such
        potential.
    """
    from langevin_xtal.crystal.elements import SYMBOLS
    from langevin_xtal.screen.potentials import load_potential

    found = load_potential(potential)
    unknown = [set(entry.cell[2].tolist()) - found.elements for entry in entries]
    if all(unknown):
        names = ", ".join(SYMBOLS[z] for z in sorted(set().union(*unknown)))
        which = "the structure" if len(entries) == 1 else "every structure"
        raise InputError(
            f"potential {potential} does not know {names}, and {which} contains such an element: "
            "give another --potential"
        )


def open_cache(folder: Path | None) -> Cache:
    """The cache of that folder, by default the user's; see ``SpareCache``."""
    from langevin_xtal.evaluation.cache import SpareCache, default_folder

    return SpareCache(folder or default_folder())


def run_record(settings: Mapping[str, object], cells: Mapping[str, Cell]) -> str:
    """What determines the files of a run, as the text of its folder's :data:`RECORD`."""
    from langevin_xtal.crystal.cell import cell_key

    keys = {name: cell_key(cell) for name, cell in cells.items()}
    record = json.loads(json.dumps({**settings, "structures": keys}))
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def open_folder(out: Path, record: str, *, force: bool) -> None:
    """Make the folder, or go on in the one of the same run.

    Raises
    ------
    InputError
        When it holds anything else and ``force`` is false, or cannot be written.
    """
    own = out / RECORD
    try:
        taken = out.is_dir() and any(out.iterdir())
        mine = own.is_file() and own.read_text(encoding="utf-8") == record
        if taken and not mine and not force:
            raise InputError(
                f"folder {out} holds something else: give --out another folder, the same files "
                "and options to go on, or --force to replace files in it"
            )
        out.mkdir(parents=True, exist_ok=True)
        clear_left(out)
        write_text(own, record)
    except (OSError, UnicodeDecodeError) as error:
        failure = error if isinstance(error, OSError) else OSError(str(error))
        raise unwritable(
            f"folder {out}", failure, InputError, "give --out a folder you may write to"
        ) from None


def check_file(path: Path, *, force: bool) -> None:
    """Refuse to write over a file.

    Raises
    ------
    InputError
        When it is there and ``force`` is false, or is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give --out the name of a file")
    check_target(path)
    if path.exists() and not force:
        raise InputError(f"{path} is there already: give --out another name, or --force")


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Rows as CSV, empty where one lacks a column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as stream:
        write_rows(stream, columns, rows)


def file_name(uid: str, ending: str) -> str:
    """A file for a structure; no name begins with what programs take for an option."""
    return (f"_{uid}" if uid.startswith(("-", "+")) else uid) + ending


def say_workers(count: int, workers: int | None, each: int) -> None:
    """On stderr, where fewer processes are started than were asked for.

    Parameters
    ----------
    count
        Structures to be done, at most.
    each
        Structures that pay for starting one more process.
    """
    from langevin_xtal.screen.cached import useful_workers

    useful = useful_workers(count, workers, each)
    if workers is not None and useful < workers:
        echo(
            f"{useful} of {workers} processes are started: one more pays for every {each} "
            f"structures, and there are {count}",
            err=True,
        )


def write_results(
    path: Path,
    rows: Sequence[dict[str, str]],
    columns: Sequence[str],
    refused: Mapping[str, str],
) -> list[dict[str, str]]:
    """Write a line for each structure, then those left out; show some of it on the terminal.

    Returns
    -------
    list
        All lines.
    """
    every = [*rows, *({"name": name, "note": reason} for name, reason in refused.items())]
    write_table(path, every)
    show_table(rows, columns, path)
    show_refused(refused)
    return every


def show_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str], rest: Path) -> None:
    """Some columns of the first rows on the terminal."""
    lines = [tuple(columns), *(tuple(row.get(c, "") for c in columns) for row in rows[:SHOWN])]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    for line in lines:
        echo("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    if len(rows) > SHOWN:
        echo(f"… {len(rows) - SHOWN} more in {rest}")


def show_refused(refused: Mapping[str, str]) -> None:
    """What was left out, on stderr."""
    for name, reason in list(refused.items())[:SHOWN]:
        echo(f"Warning: {name} is left out: {' '.join(reason.split())}", err=True)
    if len(refused) > SHOWN:
        echo(f"Warning: {len(refused) - SHOWN} more are left out", err=True)


def number_text(value: float, digits: int = 4) -> str:
    """A number for a table, empty when it is NaN."""
    return "" if value != value else f"{value:.{digits}f}"


def with_error(properties: Mapping[str, object], name: str) -> str:
    """A predicted number with its error, such as ``1.32 ± 0.25``; empty where there is none."""
    value, error = properties.get(name), properties.get(f"{name}_error")
    if not isinstance(value, float) or not isinstance(error, float):
        return ""
    return f"{value:.2f} ± {error:.2f}"
