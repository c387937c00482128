"""Reinforcement learning from human feedback: language models and what trains them."""
