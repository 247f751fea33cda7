"""A search as one HTML file: ranked table, hull, distributions and structures in 3D.

The file needs no network and refuses to use one (Content-Security-Policy). It holds the
candidates as JSON and draws them when asked; 3Dmol.js is copied into it.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin_xtal.crystal.entry import Entry, Value
from langevin_xtal.errors import InputError
from langevin_xtal.files import check_target, unwritable, write_bytes
from langevin_xtal.report.diagram import agree, elements_of, make_diagram
from langevin_xtal.report.limits import limits
from langevin_xtal.report.rows import page_rows, shared_provenance
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.version import __version__

if TYPE_CHECKING:
    from langevin_xtal.screen.hull import HullReferences

SCRIPTS = ("search.js", "search_plots.js", "search_viewer.js", "search_page.js")
VIEWER = "vendor/3Dmol-min.js"
VIEWER_LICENCE = "vendor/3Dmol-LICENSE.txt"

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    entries: Sequence[Entry],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    date: str = "",
    stages: Mapping[str, int] | None = None,
    references: HullReferences | None = None,
    about: Mapping[str, str] | None = None,
    force: bool = False,
) -> Path:
    """Write the report of a search to ``path``, complete or not at all.

    Parameters
    ----------
    force
        Replace a file that is there.
    entries, title, date, stages, references, about
        Those of :func:`report_html`.

    Raises
    ------
    InputError
        When there are no candidates, or ``path`` exists or cannot be written.
    """
    path = Path(path)
    check_output(path, force=force)
    text = report_html(
        entries, title=title, date=date, stages=stages, references=references, about=about
    )
    try:
        write_bytes(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise unwritable(path, error, InputError) from None
    return path


def check_output(path: Path, *, force: bool = False) -> None:
    """Whether a report can be written to ``path``, before the work is done.

    Raises
    ------
    InputError
        When it cannot.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the HTML file to write, such as report.html")
    check_target(path)
    if path.exists() and not force:
        raise InputError(f"{path} exists already: give another name, or --force to replace it")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist: make it, or give another one")


def report_html(
    entries: Sequence[Entry],
    *,
    title: str = "",
    date: str = "",
    stages: Mapping[str, int] | None = None,
    references: HullReferences | None = None,
    about: Mapping[str, str] | None = None,
) -> str:
    """The page.

    Parameters
    ----------
    entries
        Candidates, best first: their order is their rank.
    title
        By default the elements of the candidates.
    date
        Printed as it is. The same arguments give the same page.
    stages
        How many candidates reached each stage of the search; counted from ``entries`` otherwise.
    references
        What energies above the hull were measured from. They are left out when they do not give
        the energies above the hull that the entries have.
    about
        What else is known of the search as a whole, by name.

    Raises
    ------
    InputError
        When there are no candidates.
    """
    if not entries:
        raise InputError("there are no candidates to report: the source holds none")
    shared = shared_provenance(entries)
    known = references if references is not None and agree(entries, references) else None
    diagram, why = make_diagram(entries, known)
    title = title.strip() or f"{'–'.join(elements_of(entries))}: candidate crystals"
    data = {
        "title": title,
        "rows": page_rows(entries, shared, diagram),
        "elements": _elements(entries),
        "groups": _groups(entries),
        "diagram": None if diagram is None else asdict(diagram),
        "why": why,
    }
    return _page(
        {
            "title": html.escape(title),
            "style": _text("search.css"),
            "data": as_script(data),
            "facts": _facts(entries, shared, date),
            "stages": _stages(stages or _counted(entries)),
            "limits": _definitions(limits(entries, known)),
            "provenance": _definitions(
                [(k.replace("_", " "), str(v)) for k, v in {**shared, **(about or {})}.items()]
            ),
            "version": html.escape(__version__),
            "viewer": _text(VIEWER),
            "licence": html.escape(_text(VIEWER_LICENCE)),
            "scripts": "\n".join(_text(name) for name in SCRIPTS),
        }
    )


def as_script(data: Any) -> str:
    """JSON that can stand inside ``<script>``: nothing in it ends the element or opens another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _page(parts: Mapping[str, str]) -> str:
    """The template with its slots filled in one pass, so that no content is taken for a slot."""
    return _SLOT.sub(lambda slot: parts[slot[1]], _text("search.html"))


def _text(name: str) -> str:
    return resources.files("langevin_xtal.report").joinpath(name).read_text(encoding="utf-8")


def _elements(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Colour (Jmol's) and covalent radius [Å] of each element."""
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.colors import jmol_colors

    found = {}
    for symbol in elements_of(entries):
        z = atomic_numbers[symbol]
        red, green, blue = (round(255 * float(part)) for part in jmol_colors[z])
        found[symbol] = [f"#{red:02x}{green:02x}{blue:02x}", round(float(covalent_radii[z]), 2)]
    return found


def _groups(entries: Sequence[Entry]) -> dict[int, str]:
    numbers = {n for e in entries for n in (e.space_group, e.found_group) if n and n > 0}
    return {n: SpaceGroup(n).symbol for n in sorted(numbers)}


def _facts(entries: Sequence[Entry], shared: Mapping[str, Value], date: str) -> str:
    """The line under the title."""
    facts = {
        "System": "–".join(elements_of(entries)),
        "Model": str(shared.get("model", "")),
        "Weights": str(shared.get("weights", "")),
        "Potential": ", ".join(sorted({e.potential for e in entries if e.potential})),
        "Version": f"langevin-xtal {shared.get('version', __version__)}",
        "Date": date,
    }
    return _definitions([(name, value) for name, value in facts.items() if value])


def _counted(entries: Sequence[Entry]) -> dict[str, int]:
    above = [e.e_above_hull for e in entries if e.e_above_hull is not None]
    counts = {"listed": len(entries)}
    if any(e.energy is not None for e in entries):
        counts["relaxed"] = sum(e.sampled is not None for e in entries)
        counts["with an energy"] = sum(e.energy is not None for e in entries)
    if above:
        counts["placed against the hull"] = len(above)
        counts["at most 100 meV/atom above"] = sum(value <= 0.1 for value in above)
        counts["on or below the hull"] = sum(value <= 0 for value in above)
    return counts


def _stages(counts: Mapping[str, int]) -> str:
    return "\n".join(
        f"<li><b>{count:,}</b> <span>{html.escape(name)}</span></li>"
        for name, count in counts.items()
    )


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in pairs
    )
