"""``langevin-xtal data``: make packed datasets and look into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from langevin_xtal.cli import options, structures, types
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.errors import InputError
from langevin_xtal.text import KEY_VARIABLE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from langevin_xtal.dataset.packed import PackedDataset


def packed_file(help: str) -> options.Decorator:
    """``--out``: a packed file."""
    return options.output(help, "FILE.lxd", dir_okay=False)


@click.group()
def data() -> None:
    """Packed datasets: fetch structures, prepare, split, join, show what one holds."""


@data.command()
@click.argument("source", type=options.LocalPath())
@packed_file("The packed file to write; rejects go to FILE.rejects.csv.")
@click.option(
    "--symprec",
    default=USUAL,
    show_default=True,
    help="Tolerance of the symmetry search [Å].",
)
@options.workers
@click.option("--limit", type=int, help="Read no more than N structures.", metavar="N")
@structures.file_format
@click.option("--licence", default="", help="Licence of the source, stored with the data.")
@click.option("--attribution", default="", help="Whom to credit, stored with the data.")
@options.on_engine
def prepare(
    source: Path,
    out: Path,
    symprec: float,
    workers: int | None,
    limit: int | None,
    licence: str,
    attribution: str,
) -> None:
    """Pack the structures of SOURCE into one file.

    SOURCE is a file of structures in any format (CIF, POSCAR, extended XYZ, CSV with a 'cif'
    column, an ASE database, pymatgen or OPTIMADE JSON, an .npz of flat arrays, …), compressed or
    not, or a folder of them, searched at any depth. Other numeric columns become properties. Each
    structure is symmetrised with spglib; what cannot be used, and exact repeats, are listed with
    their reason in FILE.rejects.csv.

    \b
    Examples:
      langevin-xtal data prepare cifs/ --out mine.lxd
      langevin-xtal data prepare train.csv --out train.lxd --licence "CC-BY 4.0"
    """
    from langevin_xtal.dataset.prepare import prepare as run

    meta = {"licence": licence, "attribution": attribution}
    with options.progress_bar("preparing", " structures") as update:
        summary = run(
            source,
            out,
            symprec,
            workers=workers,
            limit=limit,
            meta=meta,
            progress=update,
            file_format=structures.given_format(),
        )
    kept = summary.dataset
    echo(f"{len(kept)} of {summary.read} structures packed into {out}")
    for reason, count in sorted(summary.rejects.items(), key=lambda item: -item[1]):
        echo(f"  {count} rejected: {reason}")
    if summary.rejects:
        echo(f"rejects are listed in {summary.rejects_path}")
    for note, count in summary.notes.items():
        echo(f"Note: of {count} structures: {note}", err=True)
    structures.show_notes({}, summary.passed_over)


@data.command()
@click.argument("source", type=click.Choice(["mp-20", "materials-project"]))
@options.output_folder("fetched")
@options.project_key("Of the Materials Project")
@click.option("--elements", type=types.Elements(), help="Of these and no others, such as Cu,Si,K.")
@click.option("--max-atoms", type=click.IntRange(min=1), help="In the cell.  [default: 20]")
@click.option(
    "--max-above-hull",
    type=click.FloatRange(min=0.0),
    help="Energy above hull [eV/atom].  [default: 0.1]",
)
def fetch(
    source: str,
    out: Path,
    key: str | None,
    elements: tuple[str, ...] | None,
    max_atoms: int | None,
    max_above_hull: float | None,
) -> None:
    """Fetch crystals to train on: MP-20, or the Materials Project's with your key.

    Writes CSV files for data prepare. An interrupted fetch is continued by the same command.

    \b
    Examples:
      langevin-xtal data fetch mp-20 --out mp20/
      langevin-xtal data fetch materials-project --key env --elements Cu,Si,K --out mp/
      langevin-xtal data prepare mp20/train.csv --out train.lxd
    """
    from langevin_xtal.dataset.fetch import fetch_materials_project, fetch_mp20

    question = {"elements": elements, "max_atoms": max_atoms, "max_above_hull": max_above_hull}
    given: dict[str, Any] = {name: v for name, v in question.items() if v is not None}
    if source == "mp-20":
        if key is not None or given:
            name = "key" if key is not None else next(iter(given)).replace("_", "-")
            raise InputError(f"--{name} is for materials-project; mp-20 comes as it is")
        with options.progress_bar("fetching", "B") as update:
            paths = fetch_mp20(out, progress=update)
        echo(f"MP-20 in {', '.join(map(str, paths))}; next: langevin-xtal data prepare")
        return
    if key is None:
        raise InputError(
            f"materials-project needs --key KEY, or --key env with the key in {KEY_VARIABLE}"
        )
    path = out / "materials-project.csv"
    with options.progress_bar("fetching", "atoms per cell") as update:
        count = fetch_materials_project(
            path,
            options.secret(key),
            **given,
            progress=update,
        )
    echo(f"{count} crystals in {path}; next: langevin-xtal data prepare")


@data.command()
@click.argument("file", type=options.LocalPath())
def info(file: Path) -> None:
    """Show what the packed dataset FILE holds, and where it comes from.

    \b
    Example:
      langevin-xtal data info train.lxd
    """
    from langevin_xtal.dataset.packed import PackedDataset

    for line in describe(PackedDataset.load(file)):
        echo(line)


def describe(dataset: PackedDataset) -> list[str]:
    """Lines of text: counts, groups, elements, sizes, properties and provenance."""
    import numpy as np

    from langevin_xtal.crystal.elements import SYMBOLS
    from langevin_xtal.symmetry import CRYSTAL_SYSTEMS, SpaceGroup

    def row(name: str, text: object) -> str:
        return f"{name:<16}{text}"

    crystals = len(dataset)
    lines = [row("crystals", crystals), row("sites", len(dataset.numbers))]
    if crystals:
        groups, counts = np.unique(dataset.group, return_counts=True)
        top = ", ".join(
            f"{SpaceGroup(int(groups[k])).symbol} {counts[k]}"
            for k in np.argsort(-counts, kind="stable")[:8]
        )
        lines.append(row("space groups", f"{len(groups)} (most common: {top})"))
        for name, first, last in CRYSTAL_SYSTEMS:
            count = int(((dataset.group >= first) & (dataset.group <= last)).sum())
            lines.append(row("", f"{name:<13}{count:>8}  {count / crystals:6.1%}"))
        elements, uses = np.unique(dataset.numbers, return_counts=True)
        order = np.argsort(-uses, kind="stable")[:10]
        top = ", ".join(f"{SYMBOLS[elements[k]]} {uses[k]}" for k in order)
        lines.append(row("elements", f"{len(elements)} (sites of the most common: {top})"))
        atoms = dataset.atom_counts
        lines.append(row("sites/crystal", _spread(dataset.site_counts)))
        lines.append(row("atoms/cell", _spread(atoms)))
        lines.append(row("volume/atom", _spread(dataset.volumes / atoms, " Å³")))
        for name, values in dataset.properties.items():
            known = values[~np.isnan(values)]
            text = _spread(known) if len(known) else "no value"
            lines.append(row("property", f"{name}: {len(known)} known, {text}"))
    lines.append(row("content hash", dataset.content_hash))
    for name, value in sorted(dataset.meta.items()):
        if name == "content_hash" or value in ("", {}, None):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {entry}" for key, entry in value.items())
        lines.append(row(name.replace("_", " "), value))
    # an untrusted file must not steer the terminal
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


def _spread(values: ArrayLike, unit: str = "") -> str:
    import numpy as np

    low, middle, high = np.quantile(np.asarray(values), [0.0, 0.5, 1.0])
    return f"median {middle:.4g}, from {low:.4g} to {high:.4g}{unit}"


@data.command("join")
@click.argument("files", nargs=-1, required=True, type=options.LocalPath())
@click.option(
    "--without",
    type=options.LocalPath(),
    help="Leave out near-duplicates of these: same formula and group, similar volume.",
    metavar="FILE.lxd",
)
@packed_file("The packed file to write.")
def join_files(files: tuple[Path, ...], without: Path | None, out: Path) -> None:
    """Put packed datasets together.

    \b
    Example:
      langevin-xtal data join a.lxd b.lxd --without held_out.lxd --out train.lxd
    """
    from langevin_xtal.dataset.join import join, near_duplicates
    from langevin_xtal.dataset.packed import PackedDataset

    whole = join([PackedDataset.load(file) for file in files])
    total = len(whole)
    if without is not None:
        whole = whole.select(~near_duplicates(whole, PackedDataset.load(without)))
    whole.save(out)
    left = f"; {total - len(whole)} near-duplicates of {without} left out" if without else ""
    echo(f"{len(whole)} crystals in {out}{left}")


@data.command("split")
@click.argument("file", type=options.LocalPath())
@click.option(
    "--n",
    "count",
    required=True,
    type=click.IntRange(min=1),
    help="Crystals to hold out, drawn at random.",
    metavar="N",
)
@click.option(
    "--held-out",
    required=True,
    type=options.LocalPath(dir_okay=False),
    help="The packed file to write them to.",
    metavar="FILE.lxd",
)
@packed_file(
    "The packed file to write the others to, but for near-duplicates: same formula and "
    "group, similar volume."
)
@options.seed
def split_file(file: Path, count: int, held_out: Path, out: Path, seed: int) -> None:
    """Set crystals aside before training, to evaluate on.

    \b
    Example:
      langevin-xtal data split mine.lxd --n 500 --held-out held_out.lxd --out train.lxd
    """
    from langevin_xtal.dataset.join import split
    from langevin_xtal.dataset.packed import PackedDataset

    if len({path.resolve() for path in (file, held_out, out)}) < 3:
        raise InputError("FILE, --held-out and --out must be three different files")
    whole = PackedDataset.load(file)
    rest, others = split(whole, count, seed=seed)
    others.save(held_out)
    rest.save(out)
    left = len(whole) - len(rest) - len(others)
    echo(
        f"{len(others)} crystals in {held_out}, {len(rest)} in {out}; "
        f"{left} near-duplicates of {held_out} left out"
    )
