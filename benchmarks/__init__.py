"""Benchmarks: what we do beside what a user would use instead, as ratios in one run."""
