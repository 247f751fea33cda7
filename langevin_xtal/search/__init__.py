"""Searching a chemical system: what to ask for, where results are kept, and how they are ranked."""
