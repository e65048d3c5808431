"""Each double answers its owner on every path of the table of who gets what as the table says that the real one does.

The same holds against the real applications, named as in test_doubles_comfyui.py and test_doubles_forge.py.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest
from access_table import Shown, basic, cells
from observe import as_expected, observe

from sandbox.doubles import local

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the doubles' locks are for Python 3.11 and newer")

USER, PASSWORD = "alice", "geheim"
TOKEN = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
FORM = {"username": USER, "password": PASSWORD}


@pytest.fixture(params=["comfyui", "forge"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, local.Running]]:
    if request.param == "comfyui":
        local.lay_out_comfyui(tmp_path, f"{TOKEN}\n{USER}")
        arguments: tuple[str, ...] = ()
    else:
        local.lay_out_forge(tmp_path)
        (tmp_path / "auth").write_text(f"{USER}:{PASSWORD}\n")
        arguments = ("--api", "--gradio-auth-path", str(tmp_path / "auth"), "--api-auth", f"{USER}:{PASSWORD}")
    start = local.start_comfyui if request.param == "comfyui" else local.start_forge
    with local.stopping(lambda: start(tmp_path, *arguments), 300) as double:
        if request.param == "forge":
            double.wait_for("Startup time", 300)  # its routes come after its port
        yield request.param, double


def test_every_path_answers_its_owner_as_the_table_says(running: tuple[str, local.Running]) -> None:
    kind, double = running
    with httpx.Client() as browser:
        assert browser.post(f"{double.url}/login", data=FORM).status_code in (200, 302)
        session = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies.jar)
    nobody = {"comfyui": "x=x", "forge": "x=x"}
    authorization = {"comfyui": f"Bearer {TOKEN}", "forge": basic(f"{USER}:{PASSWORD}")}
    shown = Shown(authorization, {**nobody, kind: session}, TOKEN)
    owner = [cell for cell in cells() if cell.kind == kind and cell.admitted and cell.column in ("right", "session")]
    harmless, writes = ([cell for cell in owner if (cell.effect == "writes") is does] for does in (False, True))
    answers = observe(harmless, shown, double.url, True) + observe(writes, shown, double.url, True, callers=1)
    assert len(answers) > 150
    wrong = [f"{cell}: {answer.told}, not {cell.wanted}" for cell, answer in answers if not as_expected(cell, answer)]
    assert not wrong, "\n".join(wrong)
