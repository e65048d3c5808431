"""ComfyUI's own interface in a browser: login, a workflow saved and loaded, a generation with live progress."""

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from browsing import Site, Visit, log_in_to_comfyui
from playwright.sync_api import FileChooser

from atelier import paths

STEPS = 6


def small_workflow(folder: Path) -> Path:
    """The project's SDXL Turbo workflow at a size for a CPU, with enough steps to see progress."""
    workflow = json.loads((paths.PROJECT / "workflows" / "sdxl-turbo.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"].update(width=64, height=64)
        if node["class_type"] == "SDTurboScheduler":
            node["inputs"]["steps"] = STEPS
    file = folder / "from-a-file.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    return file


def test_a_wrong_password_opens_nothing_and_the_right_one_the_interface(site: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(site.urls["comfyui"])
    assert page.url.endswith("/login")
    page.fill("#password", "wrong password")
    page.keyboard.press("Enter")
    page.wait_for_url("**/login?wrong_password=1")
    visit.shot("comfyui-wrong-password")
    page.goto(site.urls["comfyui"])
    assert page.url.endswith("/login")
    log_in_to_comfyui(site, visit)
    visit.shot("comfyui-interface")
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax", cookie
    assert cookie["secure"] == site.urls["comfyui"].startswith("https:"), cookie
    assert not visit.caused_by_gateway()


def test_a_workflow_is_saved_loaded_elsewhere_and_run(
    site: Site, visit: Visit, new_visit: Callable[[], Visit], tmp_path: Path
) -> None:
    # The slash makes a folder: ComfyUI's clients send it as %2F.
    unique = uuid.uuid4().hex[:6]
    folder, name, stored = f"studies {unique}", f"light {unique}", f"studies%20{unique}%2Flight%20{unique}.json"
    page = visit.page
    log_in_to_comfyui(site, visit)
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    visit.press("Control+o", "a file is asked for", lambda: choosers)
    choosers[0].set_files(small_workflow(tmp_path))
    visit.until("the file is open", lambda: "from-a-file" in page.title())
    page.keyboard.press("Control+s")
    page.wait_for_selector("input:focus")
    page.keyboard.press("Control+a")
    page.keyboard.type(f"{folder}/{name}")
    page.keyboard.press("Enter")
    visit.until("the workflow is saved", lambda: page.title() == f"{name} - ComfyUI")
    assert any(line == f"POST /api/userdata/workflows%2F{stored} 200" for line in visit.requests)

    other_visit = new_visit()
    page = other_visit.page
    log_in_to_comfyui(site, other_visit)
    other_visit.press("w", "the saved workflows are listed", page.get_by_text(folder, exact=True).count)
    page.get_by_text(folder, exact=True).click()
    page.get_by_text(name, exact=True).click()
    other_visit.until("the workflow is loaded", lambda: page.title() == f"{name} - ComfyUI")
    assert any(line == f"GET /api/userdata/workflows%2F{stored} 200" for line in other_visit.requests)
    other_visit.shot("comfyui-workflow-loaded")

    page.keyboard.press("Control+Enter")
    other_visit.until("the generation ends", lambda: other_visit.messages("execution_success"), 300)
    steps = [message["value"] for message in other_visit.messages("progress") if message["max"] == STEPS]
    assert steps == list(range(1, STEPS + 1)), steps
    other_visit.until(
        "the image is shown", lambda: any(re.match(r"GET (/api)?/view 200", line) for line in other_visit.requests)
    )
    page.wait_for_timeout(1000)
    other_visit.shot("comfyui-generated")
    for seen in (visit, other_visit):
        assert not seen.caused_by_gateway()
        assert not [line for line in seen.refused if not line.startswith("404 GET /api/userdata")], seen.refused
