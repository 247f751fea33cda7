"""Training: crystals as tensors, the loop, the prior over Wyckoff positions."""
