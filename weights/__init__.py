"""Weights on disk: fetched, adopted, verified, published. Standard library only; also runs on the host by itself."""
