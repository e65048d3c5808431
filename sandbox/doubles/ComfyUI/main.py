"""TEST DOUBLE, never deploy: starts what looks like ComfyUI from outside, without models, torch or a front end."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import threading

import app.logger
from comfy.cli_args import args, console_log_level

app.logger.setup_logger(console_log_level(), args.log_stdout, [(level, path) for level, path in args.verbose if path])

# ruff: noqa: E402
import execution
import folder_paths
import nodes
import server
from comfyui_version import __version__


def setup_database() -> None:
    """Creates the file that --database-url names; like the real one it only complains when it cannot."""
    try:
        with sqlite3.connect(args.database_url.removeprefix("sqlite:///")) as database:
            database.execute("CREATE TABLE IF NOT EXISTS atelier_double (started TEXT)")
    except sqlite3.Error as error:
        logging.error("Failed to initialize database: %s", error)


def main() -> None:
    logging.warning("ATELIER TEST DOUBLE of ComfyUI %s: this is not the real application", __version__)
    for kind in ("models", "output", "input", "user"):
        if getattr(args, f"{kind}_directory"):
            logging.info("Setting %s directory to: %s", kind, os.path.abspath(getattr(args, f"{kind}_directory")))
    shutil.rmtree(folder_paths.get_temp_directory(), ignore_errors=True)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    prompt_server = server.PromptServer(loop)
    if not args.disable_all_custom_nodes or args.whitelist_custom_nodes:
        nodes.init_external_custom_nodes()
    setup_database()
    prompt_server.add_routes()
    worker = (prompt_server.prompt_queue, prompt_server)
    threading.Thread(target=execution.prompt_worker, args=worker, daemon=True).start()
    if args.quick_test_for_ci:
        return
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
    try:
        loop.run_until_complete(prompt_server.start(args.listen.split(","), args.port))
    except KeyboardInterrupt:
        logging.info("\nStopped server")
    shutil.rmtree(folder_paths.get_temp_directory(), ignore_errors=True)


if __name__ == "__main__":
    main()
