"""Searching a chemical system: what to ask for, where it is kept, how candidates are ranked."""
