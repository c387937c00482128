"""Replay memories, written in place on the device."""
