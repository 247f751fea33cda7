"""Energies: interatomic potentials, relaxation and energy above hull."""
