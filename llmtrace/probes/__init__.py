"""Probes: what is read of the inside, and how it is committed to."""
