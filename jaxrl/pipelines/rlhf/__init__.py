"""The stages of RLHF put together: answers, labels, the iterated loop, the demo."""
