"""A sampler without random steps: Euler's method on the probability flow of the noise.

With x = x̂ + σ ε the flow is dx/dσ = ε (Song et al. 2021, section 4.3): one step of it from each
noise level to the next, and from the last one to no noise. Two chains
differ only where they start.

Run: langevin-xtal sample --elements Mg,O --sg 225 --sampler flow_sampler:Flow
     with this folder on PYTHONPATH
"""

from dataclasses import dataclass

from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.samplers import SAMPLERS, Schedule


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One network evaluation for each noise level."""

    levels: int = 20

    @property
    def evaluations(self) -> int:
        """Of a whole run."""
        return self.levels

    def step(self, chains: Chains, schedule: Schedule, level: int) -> None:
        """From one noise level to the next; to none from the last."""
        sigma, sigma_lattice = schedule[0][level], schedule[1][level]
        last = level == self.levels - 1
        change = (0 if last else schedule[0][level + 1]) - sigma
        change_lattice = (0 if last else schedule[1][level + 1]) - sigma_lattice
        noise, noise_lattice = chains.noise(sigma, sigma_lattice)
        chains.move_positions(change[chains.site_crystal].unsqueeze(1) * noise)
        chains.move_lattice(change_lattice.unsqueeze(1) * noise_lattice)


SAMPLERS["flow"] = Flow  # the registration: where this file is imported, "flow" is a name, too
