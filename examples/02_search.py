"""Search Cu-Si-K in a few groups, relax what is promising, and list the best.

Run: python examples/02_search.py          (a quick look: 12 candidates, none relaxed)
     python examples/02_search.py STORE    (minutes; again: goes on, or shows what is there)
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import langevin_xtal as lx


def show(stage: str, done: int, planned: int) -> None:
    print(f"{stage}: {done} of {planned}   ", end="\r", file=sys.stderr)


def search(store: str, **options: Any) -> None:
    space = lx.SearchSpace(elements=["Cu", "Si", "K"], space_groups=[62, 139, 194], max_sites=4)
    campaign = lx.Campaign(store, space, seed=1, **options)
    print(campaign)
    summary = campaign.run(show)
    for stage in summary.stages:
        print(f"{stage.title:10s} {stage.left:4d} left  {stage.seconds:7.1f} s  {stage.remark}")
    print(campaign.best(10).to_string())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        # of 120 the 20 with the lowest energies as sampled
        search(sys.argv[1], max_samples=120, relax=True, relax_best=20)
    else:
        with tempfile.TemporaryDirectory() as folder:
            search(str(Path(folder) / "quick.db"), max_samples=12)
