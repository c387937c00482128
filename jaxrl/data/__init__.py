"""Logged experience: datasets and frozen policies."""
