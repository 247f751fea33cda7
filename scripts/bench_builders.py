"""Time the multigraph builders against each other on the same random crystals.

200 crystals of 3 to 8 sites in groups of 8 to 48 operations at about 15 Å^3 per atom, the sites
partly on special positions, for about 80 and about 24 neighbours a site. Prints the median
milliseconds per crystal (of 5 runs, the first call apart) and the ratio to C++ on one thread.

    python scripts/bench_builders.py [--json] [--crystals 200] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from langevin_xtal.graph import CrystalArrays, GraphSettings, SymmetryMultigraph, available
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.lattice import cell_directions, has_fixed_angles, lattice_driver
from langevin_xtal.symmetry.sites import orbit, snap_site

SETTINGS = {
    "6 Å, all within reach": GraphSettings(cutoff=6.0, k_max=80),
    "6.7 Å, about 80 neighbours": GraphSettings(cutoff=6.7, k_max=100),
    "6 Å, at most 24 neighbours": GraphSettings(cutoff=6.0, k_max=24),
}
VOLUME_PER_ATOM = 15.0  # [Å^3]
SNAP_RADIUS = 0.8  # [Å]

Build = Callable[[CrystalArrays, GraphSettings], SymmetryMultigraph]


def random_crystals(count: int, seed: int = 0) -> CrystalArrays:
    """Crystals in random groups of 8 to 48 operations."""
    rng = np.random.default_rng(seed)
    choice = [n for n in range(1, 231) if 8 <= SpaceGroup(n).order <= 48]
    groups = rng.choice(choice, count)
    lattices, sites = [], []
    for number in groups:
        group = SpaceGroup(int(number))
        lengths = rng.uniform(0.7, 1.4, 3)[lattice_driver(group.number)[:3]]
        if has_fixed_angles(group.number):
            cell = lengths[:, None] * cell_directions(group.number)
        else:
            tilt = rng.uniform(-0.3, 0.3)
            cell = lengths[:, None] * np.array([[1.0, 0, 0], [0, 1, 0], [tilt, 0, 1]])
        frac = rng.uniform(0.0, 1.0, (int(rng.integers(3, 9)), 3))
        operations = group.rotations, group.translations
        # snapping depends on the size of the cell, and the number of atoms on snapping
        volume = VOLUME_PER_ATOM * group.order * len(frac) / 2
        for _ in range(3):
            lattice = cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3)
            snapped = np.array([snap_site(x, *operations, lattice, SNAP_RADIUS) for x in frac])
            atoms = sum(len(orbit(x, *operations, lattice)[1]) for x in snapped)
            volume = VOLUME_PER_ATOM * atoms
        lattices.append(cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3))
        sites.append(snapped)
    start = np.cumsum([0, *(len(frac) for frac in sites)])
    return CrystalArrays.of_groups(np.array(lattices), np.concatenate(sites), start, groups)


def head(crystals: CrystalArrays, count: int) -> CrystalArrays:
    """The first ``count`` crystals, for builders that are slow."""
    sites = crystals.site_start[count]
    return CrystalArrays(
        lattice=crystals.lattice[:count],
        frac=crystals.frac[:sites],
        site_start=crystals.site_start[: count + 1],
        rotations=crystals.rotations,
        translations=crystals.translations,
        op_start=crystals.op_start[:count],
        op_count=crystals.op_count[:count],
        orbit=crystals.orbit[:sites],
    )


def builders(device: str) -> dict[str, Build]:
    """Builders by the name they are printed with."""
    found: dict[str, Build] = {}
    if "cpp" in available():
        from langevin_xtal.graph import cpp

        found["cpp, 1 thread"] = lambda c, s: cpp.build(c, s, threads=1)
        found[f"cpp, {os.cpu_count()} threads"] = cpp.build
    if "numba" in available():
        from langevin_xtal.graph import numba_builder

        found["numba"] = numba_builder.build
    if "torch" in available():
        from langevin_xtal.graph import torch_builder

        found[f"torch, {device}"] = lambda c, s: torch_builder.build(c, s, device=device)
    from langevin_xtal.graph import reference

    found["reference"] = reference.build
    return found


def median_ms(build: Build, crystals: CrystalArrays, settings: GraphSettings, runs: int) -> float:
    """Milliseconds per crystal."""
    build(head(crystals, 1), settings)
    if runs > 1:
        build(crystals, settings)
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        build(crystals, settings)
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times) / len(crystals)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--crystals", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="for the torch builder")
    parser.add_argument("--reference-crystals", type=int, default=3, help="it is slow; 0: skip")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if "torch" in available():
        import torch

        torch.set_num_threads(1)  # as the others, and idle threads cost more than they bring
    crystals = random_crystals(args.crystals)
    report: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        "crystals": len(crystals),
        "sites": len(crystals.frac),
        "settings": {},
    }
    for title, settings in SETTINGS.items():
        rows: dict[str, float] = {}
        edges = 0
        for name, build in builders(args.device).items():
            if name == "reference":
                if args.reference_crystals:
                    few = head(crystals, min(args.reference_crystals, len(crystals)))
                    rows[name] = median_ms(build, few, settings, 1)
                continue
            rows[name] = median_ms(build, crystals, settings, args.runs)
            edges = len(build(crystals, settings).edge_dist)
        report["settings"][title] = {  # type: ignore[index]
            "edges_per_site": edges / len(crystals.frac),
            "ms_per_crystal": rows,
        }
        if not args.json:
            base = rows.get("cpp, 1 thread", min(rows.values()))
            print(f"{title}: {edges / len(crystals.frac):.1f} edges per site")
            for name, value in rows.items():
                print(f"  {name:20s} {value:10.4f} ms per crystal {value / base:10.1f} x")
    if args.json:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
