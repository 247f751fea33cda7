"""Crystals as data: readers of structure files, preparation, packed datasets."""
