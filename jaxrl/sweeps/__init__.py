"""Many settings: the space, the runs it becomes, their training, their results."""
