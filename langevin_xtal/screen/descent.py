"""LBFGS that never climbs.

ASE's LBFGS takes every pair of a step and a change of the gradient into its inverse Hessian, which
then has negative eigenvalues where the energy is not convex; and it takes every step. Candidates
of a search start far from their minima: one in twelve wandered about for 100 steps so, and ended
up to 0.2 eV/atom higher than where it had been after two. Here the curvature along a step is taken
for positive where it is not (as by Powell's damping: Nocedal and Wright, Numerical Optimization,
2nd ed., ch. 18.3), and a step that leads up is taken back and tried again a quarter as long.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LEAST_CURVATURE = 0.5
"""A pair of less is changed to have this much [eV/Å²]; leaving such pairs out takes two or three
times as many steps where a crystal slides along a soft mode."""
RISE = 1e-3
"""A rise of the energy by less is none [eV for each row of coordinates]: networks are noisy."""
SHORTER = 0.25
TRIES = 4
"""How often a step that leads up is made shorter."""
MEMORY = 100
"""Pairs kept."""


def direction(
    gradient: FloatArray, pairs: list[tuple[FloatArray, FloatArray]], curvature: float
) -> FloatArray:
    """Minus the inverse Hessian of LBFGS times the gradient, by the two-loop recursion.

    Parameters
    ----------
    gradient
        (n,)
    pairs
        Steps (n,) and changes of the gradient (n,) in them, the latest last.
    curvature
        First guess of the Hessian's diagonal.
    """
    left, taken = gradient.copy(), []
    for step, change in reversed(pairs):
        share = step @ left / (change @ step)
        left -= share * change
        taken.append(share)
    left /= curvature
    for (step, change), share in zip(pairs, reversed(taken), strict=True):
        left += step * (share - change @ left / (change @ step))
    return -left


@cache
def descending_lbfgs() -> Any:
    """The optimiser's class, made when it is needed: ASE is slow to import."""
    from ase.optimize.optimize import Optimizer

    class Descending(Optimizer):
        """An optimiser of ASE.

        Parameters
        ----------
        atoms, options
            As of ASE's optimisers.
        maxstep
            Farthest a row of coordinates moves [Å].
        alpha
            First guess of the curvature [eV/Å²].
        """

        def __init__(self, atoms: Any, maxstep: float, alpha: float, **options: Any) -> None:
            super().__init__(atoms, **options)  # type: ignore[no-untyped-call]
            self.maxstep, self.alpha = maxstep, alpha

        def initialize(self) -> None:
            """Nothing known yet."""
            self.pairs: list[tuple[FloatArray, FloatArray]] = []
            self.base: tuple[float, FloatArray, FloatArray] | None = None
            self.move: FloatArray = np.zeros(0)
            self.tries = 0

        def step(self, forces: Any = None) -> None:
            """On from here, or a shorter step from where the last one began."""
            moving = self.optimizable
            energy = moving.get_value()
            if self.base is not None:
                rise = energy - self.base[0]
                if rise > RISE * moving.ndofs() / 3 and self.tries < TRIES:
                    self.tries += 1
                    self.move = SHORTER * self.move
                    moving.set_x(self.base[1] + self.move)
                    return
            self.tries = 0
            place, gradient = moving.get_x(), moving.get_gradient()
            if self.base is not None:
                step, change = place - self.base[1], gradient - self.base[2]
                size = step @ step
                if size > 0:
                    lacks = LEAST_CURVATURE - change @ step / size
                    change = change + max(0.0, lacks) * step
                    self.pairs = [*self.pairs, (step, change)][-MEMORY:]
            move = direction(gradient, self.pairs, self.alpha)
            if move @ gradient >= 0:  # by rounding
                self.pairs = []
                move = -gradient / self.alpha
            longest = moving.gradient_norm(move)
            self.move = move * min(1.0, self.maxstep / longest) if longest > 0 else move
            self.base = energy, place, gradient
            moving.set_x(place + self.move)

    return Descending
