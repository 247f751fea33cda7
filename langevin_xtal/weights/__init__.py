"""Shipped checkpoints and their model cards."""
