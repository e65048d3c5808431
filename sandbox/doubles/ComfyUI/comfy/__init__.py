"""TEST DOUBLE, never deploy: the few parts of ComfyUI's `comfy` package that plugins and start scripts touch."""
