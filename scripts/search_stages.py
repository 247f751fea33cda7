"""Processor time of each stage of a search with relaxation, and how two searches' rankings differ.

All searches relax the same candidates, which are sampled once. Each is one run on one core, with
an empty cache; times are of the process and its children, so that other work beside it counts
little. A run is named by a label, and kept in the folder with its store:

    python scripts/search_stages.py run chgnet --elements Cu,Si,K --samples 200 --folder stages/
    python scripts/search_stages.py run sevennet-0 --elements Cu,Si,K --samples 200 \\
        --potential sevennet-0 --folder stages/
    PYTHONPATH=/older/tree python scripts/search_stages.py run older --elements Cu,Si,K \\
        --samples 200 --folder stages/
    python scripts/search_stages.py compare chgnet sevennet-0 --compare older chgnet \\
        --folder stages/ --out docs/results/search_stages.json

Of the best of the first, ``compare`` says which place each has in the second, whether
StructureMatcher (pymatgen's defaults) takes both geometries for equal, and how energies differ
[meV/atom].
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from langevin_xtal.files import write_text
from langevin_xtal.version import __version__

STAGES = {
    "relaxing": "relax",
    "relaxing the best": "relax",
    "releasing": "release",
    "ranking": "rank",
}
"""Titles of stages whose times are reported by name; all others are ``other``."""


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


class Clock:
    """Processor time by stage, from what a search reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.title, self.last = "", processor_seconds()

    def __call__(self, title: str, done: int, planned: int) -> None:
        """Progress of a search; time before the first report of a stage is the one before's."""
        now = processor_seconds()
        name = STAGES.get(self.title, "other")
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.title, self.last = title, now


def said(words: list[str]) -> str:
    """A command line without folders."""
    return "python scripts/search_stages.py " + " ".join(
        Path(word).name if "/" in word else word for word in words
    )


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("label")
@click.option("--elements", required=True)
@click.option("--sg", "groups", default="common", show_default=True)
@click.option("--samples", default=200, show_default=True)
@click.option("--potential", default="chgnet", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--reference", type=click.Path(exists=True))
@click.option("--folder", required=True, type=click.Path(path_type=Path))
def run(
    label: str,
    elements: str,
    groups: str,
    samples: int,
    potential: str,
    seed: int,
    reference: str | None,
    folder: Path,
) -> None:
    """Search, and keep times by stage."""
    from langevin_xtal.search.campaign import Campaign
    from langevin_xtal.search.space import SearchSpace

    folder.mkdir(parents=True, exist_ok=True)
    space = SearchSpace(elements.split(","), groups)
    given: dict[str, Any] = {"max_samples": samples, "seed": seed, "workers": 1}
    sampled = folder / "sampled.db"
    if not sampled.exists():
        Campaign(sampled, space, **given).run(only_sample=True)
    store = folder / f"{label}.db"
    if store.exists():
        raise click.ClickException(f"{store.name} is there already: a run goes in one piece")
    shutil.copy(sampled, store)
    clock = Clock()
    campaign = Campaign(
        store, space, relax=True, potential=potential, reference=reference, **given
    )
    summary = campaign.run(clock)
    clock("", 0, 0)
    result = {
        "command": said(sys.argv[1:]),
        "version": __version__,
        "machine": f"{platform.machine()}, 1 core, other work beside it",
        "potential": potential,
        "elements": elements,
        "samples": samples,
        "seconds": {name: round(spent, 1) for name, spent in clock.seconds.items()},
        "all": round(sum(clock.seconds.values()), 1),
        "stages": {s.title: [s.done, s.left, s.remark] for s in summary.stages},
    }
    write_text(folder / f"{label}.json", json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result, indent=1))


def compared(first: str, second: str, folder: Path, top: int) -> dict[str, Any]:
    """Places and energies of the best of one search in another."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from langevin_xtal.crystal.pymatgen import to_structure
    from langevin_xtal.search.entries import read_entries

    here, there = (read_entries(folder / f"{name}.db") for name in (first, second))
    place = {entry.uid: k for k, entry in enumerate(there, start=1)}
    matcher, rows = StructureMatcher(), []
    for rank, entry in enumerate(here[:top], start=1):
        other = place.get(entry.uid)
        line: dict[str, Any] = {
            "uid": entry.uid,
            "formula": entry.formula,
            "group": entry.found_group,
            first: rank,
            second: other,
            "known": entry.properties.get("known") or None,
        }
        if other is not None:
            same = there[other - 1]
            line["matches"] = bool(matcher.fit(to_structure(entry.cell), to_structure(same.cell)))
            if entry.energy is not None and same.energy is not None:
                line["difference"] = round(1000 * (same.energy - entry.energy), 2)
        rows.append(line)
    steps = [abs(r["difference"]) for r in rows if "difference" in r]
    return {
        "top": top,
        "of them among the best there": sum((r[second] or top + 1) <= top for r in rows),
        "equal geometries": sum(bool(r.get("matches")) for r in rows),
        "largest difference": max(steps, default=None),
        "within 2 meV per atom": sum(step <= 2.0 for step in steps),
        "rows": rows,
    }


@main.command()
@click.argument("labels", nargs=-1, required=True)
@click.option("--compare", "pairs", multiple=True, type=(str, str))
@click.option("--top", default=20, show_default=True)
@click.option("--folder", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
def compare(
    labels: tuple[str, ...], pairs: tuple[tuple[str, str], ...], top: int, folder: Path, out: Path
) -> None:
    """Write times and comparisons of searches to one file."""
    result = {
        "command": said(sys.argv[1:]),
        "version": __version__,
        "machine": f"{platform.machine()}, 1 core, other work beside it",
        "runs": {name: json.loads((folder / f"{name}.json").read_text()) for name in labels},
        "comparisons": {
            f"{first}, {second}": compared(first, second, folder, top) for first, second in pairs
        },
    }
    write_text(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
