"""A real browser in front of a deployed host; run by hand (docs/tested.md), no part of continuous integration.

Needs the real applications on the host, and on this computer Chromium, playwright in the virtual environment
(`uv pip install --python .venv/bin/python -r tests/browser/requirements.txt`) and, under `tls: internal`, certutil
(Debian: libnss3-tools). Then:

    .venv/bin/python -m pytest tests/browser --host sandbox-real [--rotate] [--browser /usr/bin/chromium]

Screenshots, and what each page put into its console and was refused, lie in reports/<host>/browser/ afterwards.
Where network interfaces of this computer come and go (other sandboxes), Chromium breaks off what it is doing with
ERR_NETWORK_CHANGED: run it inside the sandbox's own network, `ip netns exec atelier-<sandbox> ...`, with a TMPDIR of
its own so that no shared SSH connection from outside is used.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from browsing import Site, Visit
from playwright.sync_api import Browser, sync_playwright

from atelier import credentials, paths
from atelier.target import resolve
from atelier.verify import services


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--host", default="", help="as make's HOST=: a deployed sandbox or user@address")
    parser.addoption("--browser", default="/usr/bin/chromium", help="the Chromium to drive")
    parser.addoption("--rotate", action="store_true", help="also rotate the host's credentials under open sessions")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A rotation is only for who asked for it, and the last thing done."""
    rotation = [item for item in items if item.get_closest_marker("rotation")]
    items[:] = [item for item in items if item not in rotation] + (rotation if config.getoption("--rotate") else [])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rotation: changes the host's credentials; wants --rotate")


@pytest.fixture(scope="session")
def site(pytestconfig: pytest.Config) -> Iterator[Site]:
    if not pytestconfig.getoption("--host"):
        raise pytest.UsageError("name the deployed host: --host sandbox-real")
    (target,) = resolve(pytestconfig.getoption("--host"), "")
    secrets = paths.secrets_dir(target.name)
    known = credentials.load(secrets)
    assert known, f"no credentials of {target.name} on this computer"
    folder = paths.reports_dir(target.name) / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    ssh = target.ssh()
    ssh.connect()
    authority = secrets / "ca.crt"
    with services(target, ssh) as reach:
        yield Site(target.name, reach.urls, known, authority if authority.exists() else None, folder)


@pytest.fixture(scope="session")
def browser(site: Site, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium that reaches this computer only, and trusts the host's own authority where there is one."""
    home = tmp_path_factory.mktemp("home")
    if site.authority:
        database = home / ".pki" / "nssdb"
        database.mkdir(parents=True)
        certutil = ["certutil", "-d", f"sql:{database}"]
        subprocess.run([*certutil, "-N", "--empty-password"], check=True)
        subprocess.run([*certutil, "-A", "-t", "C,,", "-n", "atelier", "-i", str(site.authority)], check=True)
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to run as root with it
    with sync_playwright() as playwright:
        program = pytestconfig.getoption("--browser")
        yield playwright.chromium.launch(executable_path=program, args=arguments, env={**os.environ, "HOME": str(home)})


@pytest.fixture
def new_visit(site: Site, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[[], Visit]]:
    """Makes fresh browser sessions, without cookies; what each saw is written down at the end of the test."""
    visits: list[Visit] = []

    def make() -> Visit:
        visits.append(Visit(browser.new_context(viewport={"width": 1500, "height": 950}).new_page(), site.folder))
        visits[-1].listen()
        return visits[-1]

    yield make
    for number, visit in enumerate(visits, 1):
        record = {name: getattr(visit, name) for name in ("console", "refused", "requests", "sockets")}
        file = site.folder / f"{request.node.name}-{number}.json"
        file.write_text(json.dumps(record, indent=1), encoding="utf-8")
        visit.shot(f"{request.node.name}-{number}-end")
        visit.page.context.close()


@pytest.fixture
def visit(new_visit: Callable[[], Visit]) -> Visit:
    """A fresh browser session."""
    return new_visit()
