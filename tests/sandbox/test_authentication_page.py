"""docs/authentication.md: every snippet of it, in both languages, pasted into a shell of somebody with what users are given."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT
from planting import PlantedHost

from sandbox import machine

pytestmark = pytest.mark.sandbox
PAGES = {name: (ROOT / "docs" / name).read_text("utf-8") for name in ("authentication.md", "authentication.fr.md")}
GIVEN = (".env.generated", "qwen-api-user.token", "ca.crt")
EXAMPLE_TOKEN = "$2b$12$your.token"


def snippets(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


PREPARATION, *SNIPPETS = [found for found in snippets(PAGES["authentication.md"]) if found[0] != "ini"]


@pytest.fixture(scope="module")
def given(planted_host: PlantedHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that a user is given."""
    folder = tmp_path_factory.mktemp("a user's folder")
    for name in GIVEN:
        shutil.copy(planted_host.store / name, folder)
    return folder


def pasted(text: str, host: PlantedHost) -> str:
    """A snippet as the user of this host would have it: with the address, and with the token where one is shown."""
    guest = machine.get(host.sandbox.name)
    assert guest
    token = (host.store / "qwen-api-user.token").read_text()
    return text.replace("gpu-host", guest.address).replace(EXAMPLE_TOKEN, token)


def test_both_languages_have_the_same_snippets() -> None:
    assert len(SNIPPETS) >= 7
    assert len({tuple(snippets(page)) for page in PAGES.values()}) == 1


def test_both_languages_have_the_same_parts() -> None:
    english, french = (re.findall(r"^(#+ |\|)", page, re.MULTILINE) for page in PAGES.values())
    assert english == french


@pytest.mark.parametrize(("language", "text"), SNIPPETS, ids=[text.splitlines()[0][:40] for _, text in SNIPPETS])
def test_a_snippet_works_when_it_is_pasted(language: str, text: str, given: Path, planted_host: PlantedHost) -> None:
    """Into an interactive shell, which knows `!` and aliases; one that the environment of this test says nothing to."""
    if language == "python":
        text = f"python - <<'END'\n{text}END\n"
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-i"],
        input=pasted(f"set -eo pipefail\n{PREPARATION[1]}{text}echo 'it worked'\n", planted_host),
        cwd=given,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(given)},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0 and done.stdout.endswith("it worked\n"), done.stdout + done.stderr


def test_what_the_snippets_saved_is_there(given: Path) -> None:
    assert b'"images"' in (given / "answer.json").read_bytes()
    assert b'"version"' in (given / "config.json").read_bytes()
    assert {path.read_bytes()[:4] for path in given.glob("*.png")} == {b"\x89PNG"}
    assert len(list(given.glob("*.png"))) == 2


def test_the_token_in_double_quotes_is_refused_as_the_page_says(given: Path, planted_host: PlantedHost) -> None:
    text = f'{PREPARATION[1]}curl -so /dev/null -w "%{{http_code}}" -H "Authorization: Bearer {EXAMPLE_TOKEN}" "$COMFYUI_URL/queue"'
    done = subprocess.run(["bash", "-c", pasted(text, planted_host)], cwd=given, capture_output=True, text=True)
    assert done.stdout == "401", done.stderr
