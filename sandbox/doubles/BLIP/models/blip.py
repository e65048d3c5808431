"""TEST DOUBLE, never deploy: only there to be found, as Forge looks for this file at its start."""
