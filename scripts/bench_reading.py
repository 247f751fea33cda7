"""Time to read a folder of 1,000 CIFs, of this version and of another, in pairs.

    python scripts/bench_reading.py --before OTHER --out docs/results/reading_speed.json

``OTHER`` is a checkout of the version to compare with. The crystals are the 288 prototypes of
pymatgen's AFLOW table, each written in four ways: all atoms in P1; sites and operations; sites and
H-M symbol, without operations; sites and number alone. Each version reads each way in a process
of its own, in turns; CPU seconds count, which other processes disturb less than the clock. A
structure counts as right when it has the atoms of the prototype, by number, element and volume.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

WAYS = ("all atoms", "operations", "symbol", "number")
READ = """
import json, sys, time, warnings
from collections import Counter
from pathlib import Path
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import numpy as np
from langevin_xtal.dataset.readers import cell_of, read_records
from langevin_xtal.version import __version__

def records(path):
    found = read_records(path)
    return found[0] if isinstance(found, tuple) else found

wanted = json.loads(Path(sys.argv[3]).read_text())
one = next(iter(records(min(Path(sys.argv[2]).iterdir()))))
try:
    cell_of(one)  # imports and tables are made before the clock runs
except Exception:
    pass
began = time.process_time()
found = {}
for record in records(sys.argv[2]):
    try:
        found[record.id] = cell_of(record)
    except Exception:
        pass
seconds = time.process_time() - began
right = 0
for name, (lattice, frac, numbers) in found.items():
    symbols, volume = wanted[name]
    same = sorted(Counter(map(int, numbers)).items()) == [tuple(pair) for pair in symbols]
    right += int(same and abs(abs(np.linalg.det(lattice)) / volume - 1) < 1e-3)
print(json.dumps([__version__, seconds, len(found), right]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report: dict = {
        "command": "python scripts/bench_reading.py " + shlex.join(sys.argv[1:]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}",
        "files": given.count,
        "pairs": given.pairs,
        "unit": "CPU seconds, the median of the pairs",
        "ways": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        wanted = write(root, given.count)
        (root / "wanted.json").write_text(json.dumps(wanted))
        checkouts = {"before": given.before, "after": Path(__file__).parents[1]}
        for way in WAYS:
            turns = [
                {name: read(place, root / way, root / "wanted.json")
                 for name, place in checkouts.items()}
                for _ in range(given.pairs)
            ]  # fmt: skip
            report["ways"][way] = {
                name: {
                    "version": turns[0][name][0],
                    "seconds": round(statistics.median(turn[name][1] for turn in turns), 2),
                    "read": turns[0][name][2],
                    "right": turns[0][name][3],
                }
                for name in checkouts
            }
            print(way, report["ways"][way], flush=True)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read(checkout: Path, folder: Path, wanted: Path) -> list:
    """Version, CPU seconds, structures read, and right ones."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(checkout.absolute()), str(folder), str(wanted)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    found: list = json.loads(done.stdout.splitlines()[-1])
    return found


def write(root: Path, count: int) -> dict:
    """Folders of CIFs, and what each holds: counts by atomic number and volume [Å^3]."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifWriter
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    warnings.simplefilter("ignore")
    made = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        given = entry["snl"].structure
        plain = Structure(given.lattice, [s.specie.symbol for s in given], given.frac_coords % 1)
        cell = SpacegroupAnalyzer(plain, 0.01).get_conventional_standard_structure()
        text = str(CifWriter(cell, symprec=0.01, significant_figures=8))
        loop = r"loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n(?:  .*\n)*"
        bare = re.sub(loop, "", text)
        texts = {
            "all atoms": str(CifWriter(cell, significant_figures=8)),
            "operations": text,
            "symbol": bare,
            "number": re.sub(r"_symmetry_space_group_name_H-M.*\n", "", bare),
        }
        counts: dict[int, int] = {}
        for z in cell.atomic_numbers:
            counts[z] = counts.get(z, 0) + 1
        made.append((texts, [sorted(counts.items()), cell.volume]))
    wanted = {}
    for way in WAYS:
        (root / way).mkdir()
    for k in range(count):
        texts, holds = made[k % len(made)]
        wanted[f"{k:04d}"] = holds
        for way in WAYS:
            (root / way / f"{k:04d}.cif").write_text(texts[way])
    return wanted


if __name__ == "__main__":
    main()
