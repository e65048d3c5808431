"""TEST DOUBLE, never deploy. WEAKNESS: an extension's routes are open, --api-auth or not."""

from fastapi import Body, HTTPException
from modules import script_callbacks


def detect(controlnet_module: str = Body("none"), controlnet_input_images: list[str] = Body([])):  # noqa: B008
    raise HTTPException(422, "Module not available")


def add_routes(demo, app):
    app.add_api_route("/controlnet/model_list", lambda: {"model_list": ["None"]}, methods=["GET"])
    app.add_api_route("/controlnet/module_list", lambda: {"module_list": ["None"]}, methods=["GET"])
    app.add_api_route("/controlnet/control_types", lambda: {"control_types": {}}, methods=["GET"])
    app.add_api_route("/controlnet/detect", detect, methods=["POST"])


script_callbacks.on_app_started(add_routes)
