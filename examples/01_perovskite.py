"""Sample Sr, Ti and O, one site each, in Pm-3m and see how often the perovskite comes out.

Run: python examples/01_perovskite.py   (a few seconds)
"""

from collections import Counter

import langevin_xtal as lx


def main() -> None:
    request = lx.Request(space_group="Pm-3m", sites={"Sr": 1, "Ti": 1, "O": 1})
    candidates = lx.sample([request] * 16, model="small", seed=0)
    print(Counter(c.formula for c in candidates))
    for c in candidates:
        if c.formula == "SrTiO3":
            print(f"{c}  a = {c.lattice[0, 0]:.2f} Å (experiment: 3.91 Å)")


if __name__ == "__main__":
    main()
