"""Flax modules, and the way from an observation to their input."""
