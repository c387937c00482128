"""The stages of RLHF put together: responses, labels, the iterated loop, the demo."""
