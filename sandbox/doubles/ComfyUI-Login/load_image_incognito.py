"""TEST DOUBLE, never deploy: the node that drags pycryptodome in: without the module `Crypto` the login is lost."""

from __future__ import annotations

import io
import os
from typing import Any

import folder_paths
from Crypto.Cipher import AES
from Crypto.Util.Padding import unpad
from PIL import Image


def to_bytes(words: dict[str, Any]) -> bytes:
    packed = b"".join((word & 0xFFFFFFFF).to_bytes(4, "big") for word in words["words"])
    return packed[: words["sigBytes"]]


class LoadImageIncognito:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        folder = os.path.join(folder_paths.get_input_directory(), "incognito")
        os.makedirs(folder, exist_ok=True)
        files = [os.path.join("incognito", entry.name) for entry in os.scandir(folder) if entry.is_file()]
        return {
            "required": {
                "image": (files, {"image_upload_encrypted": True}),
                "auto_delete": ("BOOLEAN", {"default": True}),
            },
            "hidden": {"extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def load_image(self, image: str, auto_delete: bool, extra_pnginfo: dict[str, Any] | None) -> tuple[Any, None]:
        path = folder_paths.get_annotated_filepath(image)
        with open(path, "rb") as file:
            content = file.read()
        if extra_pnginfo:
            key, iv = (to_bytes(words) for words in extra_pnginfo["secret_for_private_image"])
            content = unpad(AES.new(key, AES.MODE_CBC, iv).decrypt(content), AES.block_size)
        if auto_delete:
            os.remove(path)
        return (Image.open(io.BytesIO(content)).convert("RGB"),), None
