"""A run in a folder: experiment, session, artefact, checkpoints, loggers."""
