"""Atelier: from a bare machine with an NVIDIA GPU to an authenticated, verified image-generation host."""

SCHEMA = 2
"""Schema of the state on a host; a later one is refused, an earlier one is migrated."""
