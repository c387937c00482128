"""Several runs put together: the stages of RLHF, reference agents."""
