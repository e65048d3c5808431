"""TEST DOUBLE, never deploy: Forge's start, in its order: page, login and port first, the API afterwards."""

from __future__ import annotations

import os
import threading
from typing import Any

import gradio
from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from modules import initialize_util, paths, scripts  # noqa: F401
from modules.shared_cmd_options import cmd_opts
from modules_forge import forge_version

print(f"ATELIER TEST DOUBLE of Forge {forge_version.tag}: this is not the real application", flush=True)
initialize_util.configure_sigint_handler()
os.makedirs(os.path.join(cmd_opts.data_dir, "models"), exist_ok=True)
scripts.load_scripts()


def handle_exception(request: Request, error: Exception) -> JSONResponse:
    """WEAKNESS: a 500 carries what the failed answer would have held, credentials included."""
    details = vars(error)
    content = {
        "error": type(error).__name__,
        "detail": details.get("detail", ""),
        "body": details.get("body", ""),
        "message": str(error),
    }
    return JSONResponse(status_code=int(details.get("status_code", 500)), content=jsonable_encoder(content))


def create_api(app: Any) -> None:
    from modules.api.api import Api
    from modules.call_queue import queue_lock

    Api(app, queue_lock)


def webui_worker() -> None:
    from modules import progress, script_callbacks, shared, ui, ui_extra_networks

    shared.demo = ui.create_ui()
    # WEAKNESS: no credentials, or an empty file of them, mean no login at all.
    credentials = list(initialize_util.get_gradio_auth_creds()) or None
    app, _, _ = shared.demo.launch(
        server_name=initialize_util.gradio_server_name(),
        server_port=cmd_opts.port,
        auth=credentials,
        prevent_thread_lock=True,
        allowed_paths=[*cmd_opts.gradio_allowed_path],
        app_kwargs={
            "docs_url": "/docs",
            "redoc_url": "/redoc",
            "exception_handlers": {Exception: handle_exception},
        },
    )
    progress.setup_progress_api(app)
    ui.setup_ui_api(app)
    if cmd_opts.api:
        create_api(app)
    ui_extra_networks.add_pages_to_demo(app)
    script_callbacks.app_started_callback(shared.demo, app)
    print("Startup time: 0.0s (test double).", flush=True)


def webui() -> None:
    """WEAKNESS: when the thread dies, the process lives on, with a closed port or half of its routes."""
    threading.Thread(target=webui_worker, daemon=True).start()


if __name__ == "__main__":
    from modules_forge import main_thread

    assert gradio
    webui()
    main_thread.loop()
