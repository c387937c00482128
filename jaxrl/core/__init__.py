"""Shared infrastructure of the layers above: configs, storage, processes, random keys."""
