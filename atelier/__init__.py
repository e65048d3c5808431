"""Atelier: from a bare machine with an NVIDIA GPU to an authenticated, verified image-generation host."""
