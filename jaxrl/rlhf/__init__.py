"""Reinforcement learning from human feedback."""
