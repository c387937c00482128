"""Compiled training programs and the host loop that runs them."""
