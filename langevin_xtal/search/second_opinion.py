"""A second potential's word on the best candidates of a search, kept in its store."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.screen.cached import Progress, ResultCache
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.second_opinion import Opinion, disagreement, second_opinions
from langevin_xtal.search.entries import entry_of, rank_key
from langevin_xtal.search.rows import Change, Row
from langevin_xtal.search.store import reopened

BEST = 20
"""Candidates that are looked at by default."""


def ask_second(
    store: str | os.PathLike[str],
    potential: str,
    references: HullReferences | None,
    *,
    best: int = BEST,
    relaxation: RelaxOptions | None = None,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Relax the best candidates with a second potential; returns in how many both disagree.

    They are relaxed from where the first potential left them, keeping their symmetry, and get the
    facts ``second_potential``, ``second_energy`` and ``second_above_hull`` [eV/atom],
    ``disagreement`` (second less first hull distance, eV/atom) and ``potentials_disagree``.

    Parameters
    ----------
    store
        Of a search with relaxation.
    references
        Of the second potential; without any only energies are known.
    best
        How many candidates, by rank.
    relaxation
        How; its potential is not looked at.
    cache, workers, progress
        As in :func:`~langevin_xtal.screen.relax.relax`.

    Raises
    ------
    InputError
        When there is no such potential, or the references are of another.
    DataError
        When the store cannot be used.
    """
    options = replace(relaxation or RelaxOptions(), potential=potential)
    version = load_potential(potential).version
    with reopened(store) as opened:
        ranked = [row for row in opened.rows() if row.fact("ranked") and row.cell is not None]
        ranked = [row for row in ranked if row.state not in ("rejected", "duplicate")]
        chosen = sorted(ranked, key=lambda row: rank_key(entry_of(row)))[:best]
        opinions = second_opinions(
            [row.cell for row in chosen if row.cell is not None],
            options,
            references,
            cache=cache,
            workers=workers,
            progress=progress,
        )
        changes = {
            row.index: _change(row, opinion, version)
            for row, opinion in zip(chosen, opinions, strict=True)
        }
        opened.note(changes)
    return sum(bool(change.facts["potentials_disagree"]) for change in changes.values())


def _change(row: Row, opinion: Opinion, version: str) -> Change:
    first = row.fact("e_above_hull")
    known = float(first) if isinstance(first, float) else None
    difference, flagged = disagreement(known, opinion.e_above_hull)
    return Change(
        {
            "second_potential": version,
            "second_energy": None if math.isnan(opinion.energy) else opinion.energy,
            "second_above_hull": opinion.e_above_hull,
            "disagreement": None if math.isnan(difference) else difference,
            "potentials_disagree": flagged,
            "second_reason": opinion.reason or None,
        }
    )
