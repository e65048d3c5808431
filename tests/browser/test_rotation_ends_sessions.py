"""A rotation of the host's credentials under a browser that is logged in to both services."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import Site, Visit, log_in_to_comfyui, log_in_to_forge

from atelier import credentials, paths

STATUS = "async (path) => (await fetch(path)).status"


@pytest.mark.rotation
def test_rotation_ends_open_sessions_and_the_new_credentials_open_both(
    site: Site, visit: Visit, new_visit: Callable[[], Visit]
) -> None:
    comfyui = visit.page
    log_in_to_comfyui(site, visit)
    # A second tab of the same browser: its cookies reach both services, which share a host name.
    forge = visit.beside()
    log_in_to_forge(site, forge)
    assert comfyui.evaluate(STATUS, "/api/prompt") == 200
    assert forge.page.evaluate(STATUS, "/config") == 200
    assert visit.sockets and not visit.closed_sockets
    old_cookies = comfyui.context.cookies()

    program = Path(sys.executable).with_name("atelier")
    rotation = [str(program), "rotate", "--host", site.host, "--yes"]
    done = subprocess.run(rotation, capture_output=True, text=True, timeout=1800)
    (site.folder / "rotation.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr

    visit.until("the WebSocket that was open is closed", lambda: visit.closed_sockets)
    assert comfyui.context.cookies() == old_cookies
    assert comfyui.evaluate(STATUS, "/api/prompt") == 401
    assert forge.page.evaluate(STATUS, "/config") == 401
    comfyui.reload()
    visit.until("the login page comes back", lambda: comfyui.url.endswith("/login"))
    visit.shot("comfyui-after-rotation")
    forge.page.reload()
    forge.page.get_by_label("password").wait_for()
    forge.shot("forge-after-rotation")

    known = credentials.load(paths.secrets_dir(site.host))
    assert known and known.comfyui.password != site.known.comfyui.password
    renewed = dataclasses.replace(site, known=known)
    log_in_to_comfyui(renewed, new_visit())
    log_in_to_forge(renewed, new_visit())
