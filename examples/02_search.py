"""Search Cu-Si-K in a few groups, relax what is new, and list the best.

Run: python examples/02_search.py [store]   (minutes; again: goes on, or shows what is there)
"""

import sys

import langevin_xtal as lx
from langevin_xtal.search.campaign import Campaign
from langevin_xtal.search.space import SearchSpace


def show(stage: str, done: int, planned: int) -> None:
    end = "\n" if done == planned else "\r"
    print(f"{stage}: {done} of {planned}   ", end=end, file=sys.stderr)


def main() -> None:
    store = sys.argv[1] if len(sys.argv) > 1 else "cu-si-k.db"
    space = SearchSpace(elements=["Cu", "Si", "K"], space_groups=[62, 139, 194, 225], max_sites=4)
    campaign = Campaign(store, space, lx.load_model("small"), max_samples=24, relax=True, seed=1)
    print(campaign)
    summary = campaign.run(show)
    for stage in summary.stages:
        print(f"{stage.title:10s} {stage.left:4d} left  {stage.seconds:7.1f} s  {stage.remark}")
    columns = ["formula", "group", "found_group", "e_above_hull", "energy", "flags"]
    print(campaign.best(10)[columns].to_string())


if __name__ == "__main__":
    main()
