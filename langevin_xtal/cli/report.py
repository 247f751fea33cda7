"""``langevin-xtal report``: one HTML file about a search."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo


@click.command()
@click.argument("source")
@options.output_file("report.html", "HTML file to write.")
@structures.top
@structures.file_format
@click.option("--title", default="", help="Heading.  [default: the elements]")
@structures.force
def report(source: str, out: Path, top: int | None, title: str, force: bool) -> None:
    """Write a report of candidates: one HTML file, complete in itself.

    SOURCE is the store of a search, a folder written by "sample", or structure files. The page
    shows a ranked table, the hull, distributions and structures in 3D. It works offline.

    \b
    Examples:
      langevin-xtal report cu-si-k.db --out report.html
      langevin-xtal report cusik/ --top 200 --title "Cu-Si-K, first look"
    """
    from langevin_xtal.report.search import check_output, write_report
    from langevin_xtal.screen.hull import HullReferences

    check_output(out, force=force)
    stages, about = _campaign(source)
    entries, refused = structures.read_structures([source], top=top)
    write_report(
        entries,
        out,
        title=title,
        date=datetime.date.today().isoformat(),
        stages=stages,
        about=about,
        references=HullReferences.shipped(),
        force=force,
    )
    echo(f"{len(entries)} candidates in {out}, {out.stat().st_size / 1e6:.1f} MB")
    structures.show_refused(refused)


def _campaign(source: str) -> tuple[dict[str, int] | None, dict[str, str]]:
    """Of a store: candidates by what became of them, and its settings, rejections and times."""
    from langevin_xtal.search.store import is_store, read_summary

    if not is_store(source):
        return None, {"source": Path(source).name}
    summary = read_summary(source)
    stages = {"sampled": sum(summary.states.values())}
    for state, count in summary.states.items():
        if count:
            stages["not screened yet" if state == "sampled" else state] = count
    about = {name: str(value) for name, value in summary.settings.items() if value is not None}
    about["rejections"] = "; ".join(f"{reason}: {n}" for reason, n in summary.reasons.items())
    about["seconds"] = ", ".join(f"{stage} {s:.0f}" for stage, s in summary.seconds.items())
    return stages, {name: value for name, value in about.items() if value}
