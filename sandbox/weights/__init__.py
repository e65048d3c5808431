"""Random-weight files that the real, unmodified applications load and sample on a CPU. For the sandbox only.

`forge.py` writes SD1.5- and SDXL-shaped checkpoints (ComfyUI takes the SDXL-shaped one too), `comfyui.py` an SD3-shaped
checkpoint and the three files of Qwen-Image-Edit. Most of each file is holes: its apparent size is what the application
wants, its size on disk what is really random.
"""
