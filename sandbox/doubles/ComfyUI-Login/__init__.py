"""TEST DOUBLE, never deploy: a login for ComfyUI with the measured weaknesses of ComfyUI-Login."""

from .load_image_incognito import LoadImageIncognito
from .password import app as _app  # noqa: F401  (importing the module is what installs the login)

WEB_DIRECTORY = "js"
NODE_CLASS_MAPPINGS = {"LoadImageIncognito": LoadImageIncognito}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadImageIncognito": "Upload Image Incognito"}
