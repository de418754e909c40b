"""Runs a language model on its own kernels and records what happened inside as a git commit."""

__version__ = "0.1.0"
