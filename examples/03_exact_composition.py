"""Exact compositions in given space groups: the four new compounds of the paper's Table 3.

Each formula is asked for in its group, with the fewest formula units that fit. Every candidate has
that composition and that group; what differs is which Wyckoff positions the atoms take, where they
are on them, and the cell. The crystals found most often are drawn.

Run: python examples/03_exact_composition.py                  (a quick look, 6 of each)
     python examples/03_exact_composition.py FOLDER [SAMPLES] (60 of each, pictures and CIF files)
"""

import sys
from collections import Counter
from pathlib import Path

import langevin_xtal as lx
from langevin_xtal.crystal.cif import cif_text
from langevin_xtal.evaluation.duplicates import group_duplicates
from langevin_xtal.report.pictures import draw_candidates
from langevin_xtal.sampling.folder import sites_text
from langevin_xtal.symmetry.assignments import count_assignments

COMPOUNDS = {"Cu2KSi": "Pnma", "Fe2TaSn": "Fmmm", "SbTa2V3": "P6_3/mmc", "Al3KPd6": "P6/mmm"}
DRAWN = 8


def by_frequency(candidates: list[lx.Candidate]) -> list[tuple[lx.Candidate, int]]:
    """One candidate of each different crystal, most frequent first, and how often it came up."""
    cells = [(c.lattice, c.atom_frac, c.numbers[c.atom_site]) for c in candidates]
    counts = Counter(group_duplicates(cells, workers=1))
    return [(candidates[k], times) for k, times in counts.most_common()]


def main(folder: Path | None = None, samples: int | None = None) -> None:
    samples = samples or (6 if folder is None else 60)
    model = lx.load_model("small")
    for formula, group in COMPOUNDS.items():
        request = lx.Request(group, formula=formula)
        ways = count_assignments(request.space_group.number, list(request.counts.values()))
        candidates = lx.sample([request] * samples, model, seed=0)
        for c in candidates:  # holds by construction
            atoms = Counter(c.structure.composition.get_el_amt_dict())
            assert atoms == Counter(request.counts)
        found = by_frequency(candidates)
        used = Counter(map(sites_text, candidates))
        higher = sum(c.is_supergroup for c in candidates)
        print(f"{request}: {len(candidates)} of {samples} candidates, {len(found)} different")
        print(f"  {ways} assignments of Wyckoff positions; {higher} in a supergroup at 0.01 Å")
        print(f"  most often: {', '.join(f'{s} ({n})' for s, n in used.most_common(3))}")
        for c, times in found[:3]:
            volume = c.volume / len(c.atom_site)
            print(f"  {times:3d} × {c}, {volume:.1f} Å^3/atom, shortest {c.min_distance:.2f} Å")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            draw_candidates([c for c, _ in found[:DRAWN]], folder / f"{formula}.png")
            for place, (c, _) in enumerate(found[:DRAWN]):
                (folder / f"{formula}_{place}.cif").write_text(cif_text(c))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]), *map(int, sys.argv[2:3]))
