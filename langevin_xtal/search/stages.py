"""The stages of a search, in their order.

A stage is a line of the table :data:`STAGES`: which candidates it looks at, the work, and how much
of it is handed out at a time. What it finds of a candidate is a
:class:`~langevin_xtal.search.rows.Change` of its row. Stages of the user's own come last
(:func:`extra_stage`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.properties import PROPERTIES, Window, window_energy
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.evaluation.duplicates import group_duplicates
from langevin_xtal.extras import named
from langevin_xtal.sampling.batches import choice_facts
from langevin_xtal.sampling.postprocess import Rejection
from langevin_xtal.sampling.sample import sample_batches
from langevin_xtal.screen.changes import relaxation_warning
from langevin_xtal.screen.filters import reject_reason
from langevin_xtal.screen.phonons import PhononResult, phonon_checks
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.properties import Prediction, predict_properties
from langevin_xtal.screen.relax import Relaxation, relax_folded
from langevin_xtal.screen.release import (
    GROUP_SYMPRECS,
    found_groups,
    judge,
    relax_released,
)
from langevin_xtal.search.entries import entry_of, rank_key
from langevin_xtal.search.rows import FACTS
from langevin_xtal.search.store import FINISHED, FINISHED_RELAXED, Change, Row, Store
from langevin_xtal.search.work import (
    POLL_SECONDS,
    ExtraStage,
    JointStage,
    Keep,
    Plan,
    Progress,
    Run,
    Show,
    Stage,
    geometry,
    keep_as_they_come,
)
from langevin_xtal.version import __version__

SAMPLING_SHARE = 0.5
"""Of the time allowed, when relaxation is to follow."""
BEST = 20
"""Candidates that are relaxed to the end, however far above the hull."""
PROPERTY_DIGITS = 4
"""Decimals of predictions that are kept."""
SYMPREC, LOOSE = GROUP_SYMPRECS
"""Tolerances at which groups are detected [Å]."""


def run_stages(
    plan: Plan, store: Store, progress: Progress | None = None, *, only_sample: bool = False
) -> None:
    """Do what is left to do, from the first stage to the last; each waits for what other
    processes still do.

    Parameters
    ----------
    only_sample
        End when all is sampled.
    """
    run = Run(plan, store, progress or (lambda title, done, planned: None))
    _sample(run)
    if only_sample:
        return
    for stage in (*STAGES, *map(_of_extra, plan.extra)):
        if stage.wanted(plan):
            stage.run(run)
    if not run.is_late():
        name = FINISHED_RELAXED if plan.config.relax else FINISHED
        JointStage(name=name, look=lambda run: (run.plan.total, dict)).run(run)


# -- sampling


def _sample(run: Run) -> None:
    """Sample what nobody has sampled; each candidate depends on its index alone."""
    plan, options = run.plan, run.plan.sampling
    units = range(plan.total)
    most = options.batch_size * (options.workers or os.cpu_count() or 1)
    if plan.config.max_hours is not None:
        most = math.ceil(most / 4)
    share = SAMPLING_SHARE if plan.config.relax else 1.0
    while not run.is_late(share):
        claim = run.store.claim("sample", units, most)
        run.report("sampling", claim.done, len(units))
        if claim.units:
            _sample_some(run, claim.units, claim.done)
        elif claim.left == 0:
            return
        else:
            time.sleep(POLL_SECONDS)


def _sample_some(run: Run, indices: list[int], before: int) -> None:
    plan = run.plan
    shown = before

    def show(done: int, planned: int) -> None:
        nonlocal shown
        # levels of batches stand for candidates; retries add levels, so never count down
        shown = max(shown, before + len(indices) * done // max(planned, 1))
        run.report("sampling", shown, plan.total)

    start = time.perf_counter()
    last = plan.sampling.attempts - 1
    for outcome in sample_batches(
        [plan.request(k) for k in indices],
        plan.model,
        plan.config.seed,
        indices=indices,
        options=plan.sampling,
        progress=show,
    ):
        rows = [_sampled(candidate) for candidate in outcome.candidates]
        rows += [_given_up(plan, r) for r in outcome.rejections if r.attempt == last]
        seconds, start = time.perf_counter() - start, time.perf_counter()
        run.store.add(rows, seconds)


def _given_up(plan: Plan, rejection: Rejection) -> Row:
    return Row(
        index=rejection.index,
        request=str(rejection.request),
        group=rejection.request.space_group.number,
        sampled=None,
        facts={
            "attempt": rejection.attempt,
            "reason": f"no candidate after {rejection.attempt + 1} attempts; the last: "
            + rejection.reason,
        },
        provenance={
            "model": plan.model.name,
            "weights": plan.model.hash,
            "version": __version__,
            "sampler": repr(plan.sampling.sampler),
            "index": rejection.index,
            "seed": plan.config.seed,
            **choice_facts(rejection.request),
        },
    )


def _sampled(candidate: Candidate) -> Row:
    numbers = candidate.numbers[candidate.atom_site]
    return Row(
        index=candidate.index,
        request=str(candidate.request),
        group=candidate.space_group.number,
        sampled=(candidate.lattice, candidate.atom_frac, numbers),
        facts={
            "found_group": candidate.detected[SYMPREC],
            "min_distance": candidate.min_distance,
            "attempt": candidate.attempt,
        },
        provenance={k: v for k, v in candidate.provenance.items() if k != "request"},
    )


# -- candidates one by one


def _filter(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    changes = {}
    for k, row in enumerate(rows):
        reason = reject_reason(geometry(row), run.plan.filters)
        changes[row.index] = Change({"reason": reason} if reason else {"filtered": True})
        show(k + 1)
    keep(changes)


def _look_up(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    cells = [geometry(row) for row in rows]
    found = run.known.match(cells, cache=run.cache, workers=run.plan.workers)
    keep({row.index: Change({"known": name}) for row, name in zip(rows, found, strict=True)})
    show(len(rows))


def _unknown(run: Run) -> list[int]:
    rows = run.store.rows(run.relaxed())
    return [row.index for row in rows if not row.fact("known")]


def _predict(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    assert run.plan.properties is not None
    found = predict_properties(
        [geometry(row) for row in rows],
        run.plan.properties,
        together=1,  # so that who shares the work changes no digit
        progress=lambda done, planned: show(done),
    )
    keep(
        {
            row.index: _predicted_change(prediction, run.windows)
            for row, prediction in zip(rows, found, strict=True)
        }
    )


def _target(run: Run) -> str:
    return "".join(f", {window}" for window in run.windows)


def _screen(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    relax = partial(relax_folded, options=replace(run.plan.relax_options, steps=0))
    keep_as_they_come(run, rows, relax, lambda row, result: _screened_change(result), keep, show)


def _to_relax(run: Run) -> list[int]:
    """What is left; or of it the lowest above the hull of all, as sampled.

    With a target, those come first that are low and likely to lie in its windows.
    """
    count = run.plan.config.relax_best
    if count is None and not run.windows:
        return run.left()
    rows = [r for r in run.store.rows(run.left()) if r.fact("energy_sampled") is not None]
    energy = [float(row.facts["energy_sampled"]) for row in rows]
    more = np.zeros(len(rows))
    if run.windows:
        more[:] = [window_energy(float(r.facts.get("target_probability", 0.0))) for r in rows]
    # without a hull, the lowest energies
    key = np.nan_to_num(run.above_all(rows, energy) + more, nan=math.inf)
    return [rows[k].index for k in np.lexsort((np.array(energy) + more, key))[:count]]


def _relax(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    _relax_below(run, rows, run.limits(rows), keep, show)


def _to_finish(run: Run) -> list[int]:
    """Relaxations ended early that may lead to one of the :data:`BEST`.

    Reckoned from where each was ended, whichever have been finished since.
    """
    rows = [row for row in run.store.rows() if "energy_kept" in row.facts]
    if not any("energy_ended" in row.facts for row in rows):
        return []
    most = [float(row.facts.get("energy_ended", row.facts["energy_kept"])) for row in rows]
    least = [float(row.facts.get("energy_least", e)) for row, e in zip(rows, most, strict=True)]
    worst = np.sort(run.above_all(rows, most))[min(BEST, len(rows)) - 1]
    may = run.above_all(rows, least) <= worst
    ended = ["energy_ended" in row.facts for row in rows]
    return [row.index for row, early, so in zip(rows, ended, may, strict=True) if early and so]


def _finish(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    _relax_below(run, rows, {}, keep, show)


def _relax_below(
    run: Run, rows: list[Row], limits: Mapping[str, float], keep: Keep, show: Show
) -> None:
    options = replace(run.plan.relax_options, keep_symmetry=True)
    version = load_potential(options.potential).version
    within = run.plan.config.ended_beyond
    keep_as_they_come(
        run,
        rows,
        partial(relax_folded, options=options, limits=limits),
        lambda row, result: _relaxed_change(row, result, version, within),
        keep,
        show,
    )


def _to_release(run: Run) -> list[int]:
    """Those different with symmetry kept, and near the hull of all, or without a hull."""
    rows = [
        row
        for row in run.store.rows()
        if row.fact("same_as") == -1 and not row.fact("reason") and not row.fact("ended_early")
    ]
    above = run.above_all(rows, [float(row.facts["energy_kept"]) for row in rows])
    far = above > run.plan.config.release_within  # not where it is NaN
    return [row.index for row, out in zip(rows, far, strict=True) if not out]


def _release(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    plan = run.plan
    keep_as_they_come(
        run,
        rows,
        partial(relax_released, options=plan.relax_options, release=plan.release_options),
        lambda row, result: _released_change(row, result, plan.release_options.tolerance),
        keep,
        show,
    )


def _rank(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    hull, missing = run.hull
    options = run.plan.relax_options
    changes = {}
    for k, row in enumerate(rows):
        facts: dict[str, Any] = {"ranked": True, "hull_reason": missing or None}
        if hull is not None:
            cell, potential = geometry(row), load_potential(options.potential)
            energy = hull.energy_for(cell, float(row.facts["energy"]), potential)
            result = hull.energy_above_hull(cell[2], energy)
            facts["e_above_hull"] = result.e_above_hull
            facts["hull_reason"] = result.missing or None
            facts["hull_phases"] = " + ".join(
                f"{share:.3g} {name}" for name, share in result.phases.items()
            )
        changes[row.index] = Change(facts)
        show(k + 1)
    keep(changes)


def _best(run: Run) -> list[int]:
    rows = run.store.rows(run.relaxed())
    ranked = sorted(rows, key=lambda row: rank_key(entry_of(row)))
    return [row.index for row in ranked[: run.plan.config.phonons]]


def _phonons(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
    options = replace(run.plan.phonon_options, potential=run.plan.relax_options.potential)
    check = partial(phonon_checks, options=options)
    keep_as_they_come(run, rows, check, lambda row, result: _phonon_change(result), keep, show)


# -- candidates together

Compared = tuple[list[Row], list[Cell], int]
"""Candidates and cells to compare, and a number that grows whenever there are others."""


def _passed(run: Run) -> Compared:
    rows = [row for row in run.store.rows() if row.fact("filtered")]
    return rows, [geometry(row) for row in rows], len(rows)


def _kept(run: Run) -> Compared:
    """Relaxed candidates as they were with their symmetry kept, so that who is released does not
    depend on who was released before."""
    passed = [row for row in run.store.rows() if row.fact("filtered")]
    tried = [row for row in passed if "energy" in row.facts or row.fact("reason")]
    unique = [row for row in tried if row.facts.get("duplicate_of", -1) == -1]
    relaxed = [row for row in unique if not row.fact("reason")]
    unit = len(passed + tried) + _finished(relaxed)
    return relaxed, [row.kept or geometry(row) for row in relaxed], unit


def _finished(rows: Sequence[Row]) -> int:
    """How many relaxations that were ended early have been finished."""
    return sum(row.fact("ended_early") is False for row in rows)


def _apart(run: Run) -> Compared:
    """Relaxed candidates that were different with their symmetry kept, as they are now."""
    relaxed, _, unit = _kept(run)
    apart = [row for row in relaxed if row.fact("same_as") == -1]
    released = sum("note" in row.facts for row in apart)
    return apart, [geometry(row) for row in apart], unit + released


def _comparison(
    name: str, title: str, fact: str, compared: Callable[[Run], Compared], **given: Any
) -> JointStage:
    """Marks candidates equal to an earlier one."""

    def look(run: Run) -> tuple[int, Callable[[], Mapping[int, Change]]]:
        rows, cells, unit = compared(run)
        return unit, lambda: _equal(run, rows, cells, title, fact)

    return JointStage(name=name, look=look, **given)


def _equal(
    run: Run, rows: Sequence[Row], cells: Sequence[Cell], title: str, fact: str
) -> dict[int, Change]:
    first = group_duplicates(
        cells,
        cache=run.cache,
        workers=run.plan.workers,
        progress=lambda done, planned: run.report(title, done, planned),
    )
    changes = {}
    for k, row in enumerate(rows):
        same = -1 if first[k] == k else rows[first[k]].index
        if row.facts.get(fact) != same:
            changes[row.index] = Change({fact: same})
    return changes


def _rank_together(run: Run) -> tuple[int, Callable[[], Mapping[int, Change]]]:
    """Energies above the hull of references and candidates."""
    rows = [row for row in run.store.rows(run.relaxed()) if row.fact("ranked")]

    def changes() -> dict[int, Change]:
        above = run.above_all(rows, [float(row.facts["energy"]) for row in rows])
        return {
            row.index: Change({"e_above_all": None if math.isnan(value) else value})
            for row, value in zip(rows, above.tolist(), strict=True)
        }

    return len(rows) + sum("note" in row.facts for row in rows) + _finished(rows), changes


# -- the table


def _relaxes(plan: Plan) -> bool:
    return plan.config.relax


STAGES: tuple[Stage | JointStage, ...] = (
    Stage(
        name="filter",
        title="filtering",
        units=Run.with_cells,
        work=_filter,
        at_once=200,
    ),
    _comparison("duplicates", "comparing", "duplicate_of", _passed),
    Stage(
        name="known",
        title="looking up",
        units=Run.left,
        work=_look_up,
        wanted=lambda plan: plan.reference is not None,
    ),
    Stage(
        name="properties",
        title="predicting",
        units=Run.left,
        work=_predict,
        wanted=lambda plan: plan.properties is not None,
        suffix=_target,
    ),
    Stage(
        name="screen",
        title="energies",
        units=Run.left,
        work=_screen,
        wanted=lambda plan: (
            plan.config.relax and (plan.config.relax_best is not None or bool(plan.windows))
        ),
        at_once=128,
        slow=True,
    ),
    Stage(
        name="relax",
        title="relaxing",
        units=_to_relax,
        work=_relax,
        wanted=_relaxes,
        at_once=32,
        slow=True,
    ),
    Stage(
        name="finish",
        title="relaxing the best",
        units=_to_finish,
        work=_finish,
        wanted=_relaxes,
        at_once=32,
        slow=True,
    ),
    _comparison("merge", "comparing relaxed", "same_as", _kept, wanted=_relaxes),
    Stage(
        name="release",
        title="releasing",
        units=_to_release,
        work=_release,
        wanted=_relaxes,
        at_once=16,
        slow=True,
    ),
    _comparison("merge released", "comparing released", "same_released", _apart, wanted=_relaxes),
    Stage(
        name="known relaxed",
        title="looking up relaxed",
        units=_unknown,
        work=_look_up,
        wanted=lambda plan: plan.config.relax and plan.reference is not None,
        again=True,
    ),
    Stage(
        name="properties relaxed",
        title="predicting relaxed",
        units=Run.relaxed,
        work=_predict,
        wanted=lambda plan: plan.config.relax and plan.properties is not None,
        again=True,
        suffix=_target,
    ),
    Stage(
        name="rank",
        title="ranking",
        units=Run.relaxed,
        work=_rank,
        wanted=_relaxes,
        at_once=200,
        again=True,
    ),
    JointStage(name="rank together", look=_rank_together, wanted=_relaxes),
    Stage(
        name="phonons",
        title="phonons",
        units=_best,
        work=_phonons,
        wanted=lambda plan: bool(plan.config.phonons),
        at_once=4,
        slow=True,
        again=True,
    ),
)
"""After sampling, in their order."""


# -- stages of the user's own


def extra_stage(name: str) -> ExtraStage:
    """The stage that a function of the user's own makes, named as ``module:attribute``.

    The function takes a cell (lattice rows [Å], fractional coordinates, atomic numbers) and gives
    numbers, truth values or texts by name; each name becomes a column.

    Raises
    ------
    InputError
        Where there is no such function.
    """
    judge = named(name, "stage", "module:attribute", "a function of a cell")
    return ExtraStage(name, judge)


def _of_extra(extra: ExtraStage) -> Stage:
    def work(run: Run, rows: list[Row], keep: Keep, show: Show) -> None:
        for k, row in enumerate(rows):
            keep({row.index: Change(extra_facts(extra, geometry(row)))})
            show(k + 1)

    return Stage(
        name=extra.name,
        title=extra.name,
        units=Run.left,
        work=work,
        at_once=16,
        again=True,
        suffix=lambda run: ", relaxed" if run.plan.config.relax else "",
    )


def extra_facts(extra: ExtraStage, cell: Cell) -> dict[str, Value]:
    """What a stage of the user's own says of a cell.

    Raises
    ------
    InputError
        For names that the search itself has, and values that are no columns.
    LangevinXtalError
        When the function fails.
    """
    try:
        found = dict(extra.judge(cell))
    except Exception as error:
        raise LangevinXtalError(
            f"stage {extra.name} failed: {type(error).__name__}: {error}"
        ) from error
    for name, value in found.items():
        if name in FACTS:
            raise InputError(f"stage {extra.name} gives {name!r}, which is a column of the search")
        if not isinstance(value, (str, int, float)):
            raise InputError(
                f"stage {extra.name} gives {name!r} as {type(value).__name__}; give a number, a "
                "truth value or a text"
            )
    return found


# -- what results mean for a candidate


def _predicted_change(prediction: Prediction, windows: Sequence[Window]) -> Change:
    facts: dict[str, Value | None] = {"prediction_reason": prediction.reason or None}
    for name in PROPERTIES:
        value, error = prediction.values.get(name), prediction.errors.get(name)
        facts[f"predicted_{name}"] = None if value is None else round(value, PROPERTY_DIGITS)
        facts[f"predicted_{name}_error"] = None if error is None else round(error, PROPERTY_DIGITS)
    if windows:
        each = [
            0.0
            if window.name not in prediction.values
            else window.probability(prediction.values[window.name], prediction.errors[window.name])
            for window in windows
        ]
        facts["target_probability"] = round(math.prod(each), PROPERTY_DIGITS + 2)
    return Change(facts)


def _screened_change(result: Relaxation) -> Change:
    if result.reason:
        return Change({"reason": f"energy failed: {result.reason}"})
    return Change({"energy_sampled": result.energy})


def _relaxed_change(row: Row, result: Relaxation, version: str, within: float) -> Change:
    """Of a relaxation from the start, or from where one was ended early."""
    if result.reason:
        return Change({"reason": f"relaxation failed: {result.reason}"})
    groups = found_groups(result.cell)
    warnings = [relaxation_warning(row.sampled, result.cell)]
    if result.ended_early:
        warnings.append(f"relaxation ended early: it stays {within:g} eV/atom above the hull")
    return Change(
        {
            "energy": result.energy,
            "energy_sampled": row.facts.get("energy_sampled", result.start_energy),
            "energy_kept": result.energy,
            "found_group": groups[SYMPREC],
            "found_group_0.1": groups[LOOSE],
            "found_kept": groups[SYMPREC],
            "converged": result.converged,
            "converged_kept": result.converged,
            "steps": result.steps + (row.fact("steps") or 0),
            **_ended(row, result),
            "potential": version,
            "warning": "; ".join(filter(None, warnings)),
        },
        kept=result.cell,
    )


def _ended(row: Row, result: Relaxation) -> dict[str, Value]:
    """Where a relaxation was ended early; it keeps that when it is finished later."""
    if result.ended_early:
        return {
            "ended_early": True,
            "energy_ended": result.energy,
            "energy_least": result.least,
        }
    return {"ended_early": False} if "energy_ended" in row.facts else {}


def _released_change(row: Row, released: Relaxation, tolerance: float) -> Change:
    assert row.kept is not None, row.uid
    kept = Relaxation(
        cell=row.kept,
        energy=float(row.facts["energy_kept"]),
        start_energy=float(row.facts["energy_sampled"]),
        steps=int(row.facts["steps"]),
        converged=bool(row.facts["converged_kept"]),
        max_force=math.nan,
        max_stress=math.nan,
    )
    both = judge(kept, released, {}, tolerance)
    groups = both.groups_released if both.broke else both.groups_kept
    return Change(
        {
            "energy": both.best.energy,
            "energy_released": None if released.reason else released.energy,
            "found_group": groups[SYMPREC],
            "found_group_0.1": groups[LOOSE],
            "found_released": both.groups_released[SYMPREC] or None,
            "symmetry_broke": both.broke,
            "note": both.note,
            "warning": relaxation_warning(row.sampled, both.best.cell),
            "converged": both.best.converged,
            "steps_released": released.steps,
        },
        released=None if released.reason else released.cell,
    )


def _phonon_change(result: PhononResult) -> Change:
    facts: dict[str, Value | None] = {"phonons": result.note}
    if not result.reason:
        facts |= {"imaginary": result.imaginary, "phonon_minimum": result.minimum}
    return Change(facts)
