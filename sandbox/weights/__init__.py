"""Random-weight files that the real, unmodified applications load and sample on a CPU. Never deploy these on a real host.

`forge.py` writes SD1.5- and SDXL-shaped checkpoints (standard library only), `comfyui.py` an SD3-shaped checkpoint and the
three files of Qwen-Image-Edit (needs torch). Most of each file is holes: its apparent size is what the application wants,
its size on disk what is really random.
"""
