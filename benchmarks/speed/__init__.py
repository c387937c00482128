"""Training speed on this machine, and the gap to its limit."""
