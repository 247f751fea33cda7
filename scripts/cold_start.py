"""CPU time of one ``sample`` command from a cold start, as JSON.

    python scripts/cold_start.py --tree before=../old-checkout --tree now=. \
        --out docs/results/cold_start.json

The trees take turns, so that a busy machine slows all of them alike; the least of several runs
counts. The C++ extension must have been built in every tree.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from langevin_xtal.version import __version__

ARGUMENTS = ["sample", "--elements", "Cu,Si,K", "--sg", "62", "--n", "1"]


def cpu_seconds(tree: Path) -> tuple[float, float]:
    """User and system time of one run."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "langevin_xtal", *ARGUMENTS, "--out", f"{folder}/out"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree.resolve())},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command failed in {tree.name} with status {status}")
    return usage.ru_utime, usage.ru_stime


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    trees = {name: Path(folder) for name, folder in (t.split("=", 1) for t in given.tree)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    before = os.getloadavg()[0]
    for _ in range(given.runs):
        for name, tree in trees.items():
            times[name].append(cpu_seconds(tree))
    result = {
        "command": " ".join(["langevin-xtal", *ARGUMENTS]),
        "version": __version__,
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "what": "CPU time (user + system) of one command from a cold start, least of the runs",
        "load_before_and_after": [round(before, 2), round(os.getloadavg()[0], 2)],
        "runs": given.runs,
        "seconds": {
            name: {
                "least": round(min(user + system for user, system in pairs), 2),
                "all": [round(user + system, 2) for user, system in pairs],
            }
            for name, pairs in times.items()
        },
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["seconds"], indent=2))


if __name__ == "__main__":
    main()
