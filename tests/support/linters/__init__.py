"""Linters that come from npm, and from nowhere else."""
