"""report.html in a real browser: on a phone, on a screen, dark, and on paper. Needs Debian's package chromium."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_samples
from devtools import Tab, browser
from PIL import Image, ImageChops

from atelier.history import PastReport
from atelier.report import Report
from atelier.report.model import REPORT_PAGE
from atelier.report.publication import publish

PROGRAM = shutil.which("chromium")
PHONE, SCREEN = (390, 844), (1280, 900)
KINDS = ("passed", "failed", "incomplete")
SECRET = "<&\"'correct horse`battery"

OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(found => {
  const box = found.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(found => found.outerHTML.slice(0, 200))
"""
"""What stands out of the page on either side."""
CUT = """
[...document.querySelectorAll('p, td, th, dd, li, h1, h2, h3, code, figcaption')]
  .filter(found => found.scrollWidth > found.clientWidth + 1 && getComputedStyle(found).display !== 'inline')
  .map(found => found.outerHTML.slice(0, 200))
"""
"""What does not fit into its own box."""
BOTTOM = "Math.max(...[...document.querySelectorAll('{}')].map(found => found.getBoundingClientRect().bottom))"
BROKEN = "[...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length"
COLOUR = "getComputedStyle(document.body).{}"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if PROGRAM is None:
        pytest.skip("no chromium here")
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published report of each verdict, by verdict."""
    folder = tmp_path_factory.mktemp("reports")
    return {kind: _published(folder, report_samples.report(kind, folder), kind == "failed") for kind in KINDS}


def _published(folder: Path, report: Report, has_past: bool) -> Path:
    past: list[PastReport] = report_samples.earlier(report) if has_past else []
    return publish(report, folder / report.verdict, [SECRET], folder, past) / REPORT_PAGE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [PHONE, (320, 568), SCREEN], ids=["phone", "small-phone", "screen"])
def test_everything_fits_the_screen(kind: str, size: tuple[int, int], tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages[kind], *size)
    assert tab.value("document.documentElement.scrollWidth") == size[0]
    assert tab.value(OVERFLOWING) == [] and tab.value(CUT) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_matters_is_seen_without_scrolling_on_a_phone(kind: str, tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages[kind], *PHONE)
    assert tab.value("document.querySelector('h1').innerText") == kind.capitalize()
    for part in ("h1", ".lead", ".caveats p, h1", ".verdict .pill"):
        assert 0 < tab.value(BOTTOM.format(part)) < PHONE[1], part
    assert tab.value("document.querySelector('h1').getBoundingClientRect().top") < 100
    assert bool(tab.value("document.querySelectorAll('.caveats').length")) is (kind != "failed")


def test_text_is_large_enough_to_be_read_and_links_to_be_touched(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["failed"], *PHONE)
    sizes = "[...document.querySelectorAll('body *')].map(found => parseFloat(getComputedStyle(found).fontSize))"
    assert tab.value(f"Math.min(...{sizes})") >= 10
    titles = "[...document.querySelectorAll('tbody .what')].map(found => found.getBoundingClientRect().width)"
    assert tab.value(f"Math.min(...{titles})") >= 200, "no table that is squeezed"
    heights = "[...document.querySelectorAll('nav a')].map(found => found.getBoundingClientRect().height)"
    assert tab.value(f"Math.min(...{heights})") >= 32


@pytest.mark.parametrize("kind", KINDS)
def test_all_images_are_shown_and_nothing_is_fetched(kind: str, tab: Tab, pages: dict[str, Path]) -> None:
    tab.requested.clear()
    tab.said.clear()
    tab.open(pages[kind], *SCREEN)
    assert tab.value("document.scripts.length") == 0
    assert tab.value("document.images.length") == 5 and tab.value(BROKEN) == 0
    assert tab.requested == [pages[kind].as_uri()], "the page itself, and nothing else"
    assert tab.said == [], "nothing was blocked, and nothing is wrong with it"
    assert pages[kind].stat().st_size < 2_000_000


def test_the_plots_are_drawn(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["failed"], *PHONE)
    boxes = "[...document.querySelectorAll('svg.plot')].map(found => found.getBoundingClientRect())"
    assert tab.value(f"{boxes}.length") == len(report_samples.MEASURES)
    assert tab.value(f"{boxes}.every(box => box.width > 200 && box.height > 40)")


def test_links_within_the_page_lead_somewhere(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["failed"], *SCREEN)
    lost = "filter(link => !document.getElementById(decodeURIComponent(link.hash.slice(1)))).map(link => link.hash)"
    assert tab.value(f"[...document.querySelectorAll('a[href^=\"#\"]')].{lost}") == []
    assert tab.value("new Set([...document.querySelectorAll('[id]')].map(found => found.id)).size") == tab.value(
        "document.querySelectorAll('[id]').length"
    ), "no id twice"
    others = tab.value("[...document.querySelectorAll('a:not([href^=\"#\"])')].map(link => link.getAttribute('href'))")
    assert set(others) == {"access.html"} and (pages["failed"].parent / "access.html").exists()


def test_a_script_of_a_host_does_not_run(tab: Tab, tmp_path: Path) -> None:
    report = report_samples.report("failed", tmp_path)
    hostile = (
        "</style></title></p><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    )
    checks = [check.model_copy(update={"observed": hostile, "title": hostile}) for check in report.checks]
    page = _published(tmp_path, report.model_copy(update={"checks": checks, "host": hostile}), has_past=True)
    tab.open(page, *PHONE)
    assert tab.value("document.title") != "taken" and tab.value("document.scripts.length") == 0
    assert tab.value("document.body.innerText").count("document.title='taken'") > len(checks)


def test_a_secret_is_not_shown(tab: Tab, tmp_path: Path) -> None:
    report = report_samples.report("failed", tmp_path)
    said = "sent Basic `&lt;&amp;&quot;&#39;correct horse`battery` and " + SECRET
    checks = [check.model_copy(update={"observed": said}) for check in report.checks]
    tab.open(_published(tmp_path, report.model_copy(update={"checks": checks}), has_past=True), *SCREEN)
    text = tab.value("document.documentElement.outerHTML") + tab.value("document.body.innerText")
    assert "correct horse" not in text and "[secret]" in text


@pytest.mark.parametrize("kind", KINDS)
def test_light_and_dark(kind: str, tab: Tab, pages: dict[str, Path], tmp_path: Path) -> None:
    seen = {}
    for dark in (False, True):
        tab.open(pages[kind], *PHONE, dark=dark)
        picture = tmp_path / f"{dark}.png"
        tab.screenshot(picture)
        with Image.open(picture) as image:
            seen[dark] = image.convert("RGB")
        ground = [int(part) for part in re.findall(r"\d+", tab.value(COLOUR.format("backgroundColor")))]
        ink = [int(part) for part in re.findall(r"\d+", tab.value(COLOUR.format("color")))]
        assert (sum(ground[:3]) < sum(ink[:3])) is dark
        assert seen[dark].getpixel((5, PHONE[1] - 5)) == tuple(ground[:3]), "the whole page has the ground's colour"
        assert len(seen[dark].getcolors(1 << 20) or []) > 50, "something is drawn"
    assert ImageChops.difference(seen[False], seen[True]).getbbox() == (0, 0, *PHONE)


def test_on_paper(tab: Tab, pages: dict[str, Path], tmp_path: Path) -> None:
    tab.open(pages["failed"], *SCREEN, dark=True)
    tab.pdf(tmp_path / "report.pdf")
    pages_printed = len(re.findall(rb"/Type ?/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert 2 <= pages_printed <= 30
    assert tab.value(COLOUR.format("backgroundColor")) == "rgb(255, 255, 255)", "paper is white for who likes it dark"
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.value("getComputedStyle(document.querySelector('.checks td')).display") == "table-cell"
