"""Damage valid files of every format at random and read them: a structure or a sentence.

Each damaged file is read in a child process with limits of time and memory. What is read from a
CIF or POSCAR is compared with gemmi, pymatgen and ASE: it must be the crystal of one of them, or
differ for a reason the reader names. Prints tries by outcome, and stores what broke.

Run from the repository root, for example:
``python scripts/fuzz_readers.py --tries 10000 --out fuzz/``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.mutations import FORMATS, mutate, outcome, seeds

MEMORY = 3 * 2**30
SECONDS = 20


def child(name: str, first: int, last: int, seed: int, out: str, queue, current) -> None:
    """Try mutations ``first`` to ``last`` - 1; put (outcome, number, detail) into the queue."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")

    def late(signum, frame):
        raise TimeoutError("took too long")

    signal.signal(signal.SIGALRM, late)
    with TemporaryDirectory() as folder:
        originals = seeds(name, Path(folder))
        for number in range(first, last):
            current.value = number
            path, data = mutate(name, originals, number, seed, Path(folder))
            signal.alarm(SECONDS)
            began = time.perf_counter()
            try:
                kind, detail = outcome(path, compare=True)
            except BaseException as error:
                kind, detail = "broke", f"{type(error).__name__}: {error}"
            signal.alarm(0)
            seconds = time.perf_counter() - began
            if kind in ("broke", "odd message", "another crystal"):
                stored = Path(out) / f"{name}-{number}{path.suffix}"
                stored.write_bytes(data)
            queue.put((kind, number, detail, seconds))
            path.unlink()
    queue.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--out", default="fuzz")
    given = parser.parse_args()
    Path(given.out).mkdir(exist_ok=True)
    summary = {}
    for name in given.formats.split(","):
        context = multiprocessing.get_context("spawn")
        queue, current = context.Queue(), context.Value("q", 0)
        kinds: Counter[str] = Counter()
        slowest, bad, first = 0.0, [], 0
        while first < given.tries:
            work = context.Process(
                target=child,
                args=(name, first, given.tries, given.seed, given.out, queue, current),
            )
            work.start()
            while True:
                try:
                    found = queue.get(timeout=5)
                except Empty:
                    if work.is_alive():
                        continue
                    kinds["crashed"] += 1
                    bad.append((current.value, "crashed", f"exit code {work.exitcode}"))
                    first = current.value + 1
                    break
                if found is None:
                    first = given.tries
                    break
                kind, number, detail, seconds = found
                kinds[kind] += 1
                slowest = max(slowest, seconds)
                if kind in ("broke", "odd message", "another crystal"):
                    bad.append((number, kind, detail[:200]))
            work.join()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        summary[name] = {**kinds, "slowest": round(slowest, 2), "peak_MB": round(peak)}
        print(name, summary[name], *bad[:8], sep="\n  ", flush=True)
    (Path(given.out) / "summary.json").write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
