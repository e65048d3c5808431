"""Settings of a sandbox whose real ComfyUI has weights for Qwen-Image-Edit (HOST=sandbox-qwen), on top of the sandbox's.

They are random numbers in files of 9 GB, written once on this computer; one image takes minutes on two cores, and much longer
where those have other work.
"""

minimum_memory_gb = 16
timeouts = {"generation": 3600}
models = {"sets": ["synthetic", "synthetic-qwen"]}
