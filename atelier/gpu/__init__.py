"""The GPU host: its facts, the plan that follows from them, and which service gets which GPU."""
