"""Benchmarks: one script for each measured claim."""
