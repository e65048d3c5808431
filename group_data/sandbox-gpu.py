"""Settings of a sandbox with a simulated GPU (HOST=sandbox-gpu), on top of those of the sandbox."""

profile = "gpu-simulated"
