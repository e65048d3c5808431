"""report.html: what stands in it and in which order, that nothing in it comes from elsewhere, and its colours."""

import base64
import io
import itertools
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image, PngImagePlugin

from atelier import paths
from atelier.errors import AtelierError
from atelier.history import PastReport
from atelier.report import CheckResult, Metric, Report, ReportImage, Step, stand_ins
from atelier.report.model import NOT_CHOSEN
from atelier.report.page import as_page, compared, moment, number, thumbnail, took
from atelier.report.plot import plot
from atelier.report.templates import codes

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;b&gt;\x1b[31m\u202e{{ 7*7 }}"


def result(id: str, verdict: str = "passed", **more) -> CheckResult:
    fields = {
        "id": id,
        "group": id.split(".")[0],
        "title": f"Title of {id}",
        "verdict": verdict,
        "seconds": 0.5,
        "expected": f"wanted by {id}",
        "observed": f"seen by {id}",
        "hint": "" if verdict == "passed" else f"mend {id} with `make mend`",
    }
    return CheckResult(**{**fields, **more})


def report(*checks: CheckResult, verdict: str = "passed", **more) -> Report:
    fields = {"host": "gpu1", "started": "2026-11-21T20:43:00Z", "finished": "2026-11-21T20:44:15Z", "doubles": False}
    return Report(
        **{**fields, "verdict": verdict, "checks": list(checks), "versions": {"kernel": "6.1"}, "images": [], **more}
    )


def before(now: Report, **more) -> PastReport:
    document = {**now.model_dump(by_alias=True), "name": "20261120T204400Z", "finished": "2026-11-20T20:44:00Z"}
    return PastReport.model_validate({**document, **more})


class Reader(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.headings: list[tuple[int, str]] = []
        self.feed(page)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def in_order(text: str, *parts: str) -> bool:
    """Whether each part stands somewhere after the one before it."""
    at = 0
    for part in parts:
        at = text.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


def picture(size: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "a secret in the metadata")
    image = Image.frombytes("RGB", (size, size), random.Random(1).randbytes(size * size * 3))
    image.convert(mode).save(file, "PNG", pnginfo=notes)
    return file.getvalue()


def test_the_order_of_the_parts(tmp_path):
    (tmp_path / "one.png").write_bytes(picture(64))
    now = report(
        result("a.red", "failed"),
        result("a.good"),
        verdict="failed",
        doubles=True,
        versions={"kernel": "6.1", "sources": "double", "profile": "gpu-simulated"},
        images=[ReportImage(check="a.good", file="one.png", width=64, height=64, sha256="0" * 64)],
        metrics=[Metric(check="a.good", name="a.seconds", value=2, unit="s")],
    )
    page = Reader(as_page(now, [before(now)], tmp_path))
    assert page.headings == [
        (1, "Failed"),
        (2, "What changed"),
        (2, "What to do"),
        (3, "Title of a.red"),
        (2, "Checks"),
        (3, "A"),
        (2, "Images"),
        (2, "Timings and measures"),
        (2, "Versions"),
    ]
    assert in_order(page.text, "Failed", "Title of a.red", "seen by a.red", "Doubles stand in", "The GPU is simulated")
    assert page.text.index("The GPU is simulated") < page.text.index("Timings")


@pytest.mark.parametrize(
    ("now", "lines"),
    [
        (report(result("a"), result("b", "warning")), ["Passed", "1 check passed, 1 warning"]),
        (report(result("a")), ["Passed", "1 check passed"]),
        (
            report(result("a"), result("b", "skipped", observed=NOT_CHOSEN)),
            ["1 check passed", "1 more check was not part of this run"],
        ),
        (
            report(result("a", "failed"), verdict="failed"),
            ["Failed: Title of a", "Observed", "seen by a", "What to do", "mend a with make mend"],
        ),
        (
            report(
                result("generation.comfyui.checkpoint", "failed"),
                result("generation.comfyui.smoke", "failed"),
                verdict="failed",
            ),
            ["Failed: Title of generation.comfyui.smoke", "seen by generation.comfyui.smoke"],
        ),
        (report(verdict="failed"), ["Failed", "No check ran"]),
        (
            report(result("a"), verdict="failed", broke_off="pytest ended with 2 and 1 results"),
            ["The run broke off: pytest ended with 2 and 1 results; run it again"],
        ),
        (
            report(result("a", "skipped", required=True, observed="at work"), verdict="incomplete"),
            ["Incomplete", "1 required check did not run", "Title of a: at work"],
        ),
        (
            report(result("a", "skipped", required=True), verdict="incomplete", broke_off="interrupted"),
            ["Incomplete", "Interrupted: 1 required check did not run"],
        ),
    ],
)
def test_the_verdict_and_the_line_that_matters(now, lines):
    text = Reader(as_page(now, [], None)).text
    head = text[: text.index("What changed", text.index("\n", text.index("Verification of")))]
    assert in_order(head, *lines), head


def test_what_is_to_be_done_causes_first():
    now = report(
        result("generation.comfyui.checkpoint", "failed", observed="no image"),
        result("generation.comfyui.smoke", "failed", requirement="it works"),
        result("a.warned", "warning"),
        result("a.missing", "skipped", required=True, observed="at work", hint=""),
        result("a.unneeded", "skipped"),
        verdict="failed",
        command="make verify HOST=me@box",
    )
    page = Reader(as_page(now, [], None))
    tasks = [attributes.get("id") for attributes in page.all("article")]
    assert tasks == [
        "do-generation.comfyui.smoke",
        "do-generation.comfyui.checkpoint",
        "do-a.warned",
        None,
    ]
    assert in_order(page.text, "Did not run: at work", "1 not run", "Title of a.missing", "Then verify again")
    assert "Probably follows from: Title of generation.comfyui.smoke. Mend that first." in page.text
    assert page.text.count("Probably follows") == 1
    assert in_order(page.text, "Probably follows", "If it stays:", "mend generation.comfyui.checkpoint", "no image")
    again = "make verify HOST=me@box CHECK=generation.comfyui.checkpoint,generation.comfyui.smoke,a.missing"
    assert in_order(page.text, "Then verify again:", again)
    assert "it works" in page.text


def test_what_did_not_run_for_one_reason_is_told_once():
    missing = [result(f"a.x{n}", "skipped", required=True, observed="busy" if n else "odd", hint="") for n in range(5)]
    text = Reader(as_page(report(*missing, verdict="incomplete"), [], None)).text
    part = text[text.index("Did not run: ") : text.index("Verdict")]
    assert in_order(part, "odd", "Title of a.x0", "busy", "4 not run", "Title of a.x1", "Title of a.x4")
    assert part.count("busy") == 1


def test_with_many_red_the_whole_is_run_again():
    now = report(*(result(f"a.x{n}", "failed") for n in range(9)), verdict="failed", command="make verify")
    assert "Then verify again:make verify\n" in Reader(as_page(now, [], None)).text


def test_each_check_stands_in_the_table_with_all_it_compared():
    steps = [Step(expected="closed", observed="401"), Step(expected="open to its owner", observed="200")]
    now = report(
        result("a.one"),
        result("a.steps", steps=steps, requirement="what must be"),
        result("b.other", "skipped", observed="at work"),
        result("b.unchosen", "skipped", observed=NOT_CHOSEN),
    )
    page = as_page(now, [], None)
    text = Reader(page).text
    assert in_order(text, "wanted by a.one", "seen by a.one", "Title of a.steps", "what must be", "closed", "401")
    assert in_order(text, "401", "open to its owner", "200", "Title of b.other", "at work")
    assert "b.unchosen" not in text and "wanted by a.steps" not in text
    assert len(re.findall("<table class=.checks", page)) == 2


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([], [("wanted by a", "seen by a")]),
        ([("x", "1"), ("y", "2")], [("x", "1"), ("y", "2")]),
        ([("x", "1"), ("y", "2"), ("x", "3"), ("y", "2")], [("x", "1; 3"), ("y", "2 (2 times)")]),
        ([("x", "1"), ("x", "2"), ("x", "1")], [("x", "1 (2 times); 2")]),
    ],
)
def test_an_expectation_stands_once_with_all_that_was_observed(steps, shown):
    check = result("a", steps=[Step(expected=expected, observed=observed) for expected, observed in steps])
    assert [(step.expected, step.observed) for step in compared(check)] == shown


def test_what_changed():
    now = report(
        result("a.red", "failed"),
        result("a.good"),
        result("a.warned", "warning"),
        result("a.new"),
        result("a.same"),
        verdict="failed",
        versions={"kernel": "6.2", "docker": "26"},
    )
    checks = [
        {"id": "a.red", "verdict": "passed"},
        {"id": "a.good", "verdict": "failed"},
        {"id": "a.warned", "verdict": "passed"},
        {"id": "a.same", "verdict": "passed"},
        {"id": "a.gone", "verdict": "passed", "title": "Title of a.gone"},
    ]
    text = Reader(as_page(now, [before(now, checks=checks, versions={"kernel": "6.1"}, verdict="failed")], None)).text
    part = text[text.index("Compared with") : text.index("Title of a.reda.red")]
    assert "the run before, of 20 November 2026, 20:44 UTC, which failed" in part
    lines = (
        "Newly failed",
        "Title of a.red",
        "Passed again",
        "Title of a.good",
        "Newly a warning",
        "Title of a.warned",
    )
    assert in_order(part, *lines, "passed before", "Checks that are new", "Title of a.new", "Checks that are gone")
    assert in_order(part, "Title of a.gone", "Versions that changed", "kernel: 6.1 → 6.2")
    assert "a.same" not in part and "docker" not in part


def test_what_changed_since_a_check_last_ran():
    now = report(result("a.red", "failed"), verdict="failed")
    first = before(now, checks=[{"id": "a.red", "verdict": "passed"}], finished="2026-11-19T20:44:00Z")
    short = before(now, checks=[{"id": "a.red", "verdict": "skipped"}])
    text = Reader(as_page(now, [first, short], None)).text
    lines = ("the run before, of 20 November", "Newly failed", "Title of a.red", "passed when it last ran, 19 November")
    assert in_order(text, *lines)


def test_nothing_changed_and_nothing_to_compare_with():
    now = report(result("a"))
    assert "Nothing that was checked differs from the run before" in Reader(as_page(now, [before(now)], None)).text
    assert "Nothing to compare with" in Reader(as_page(now, [], None)).text


def test_since_when_it_fails():
    now = report(result("a", "failed"), verdict="failed")
    assert in_order(Reader(as_page(now, [before(now)], None)).text, "Failing since", "20 November 2026, 20:44 UTC")
    assert "Failing since" not in Reader(as_page(now, [], None)).text


def test_text_from_hosts_is_text(tmp_path):
    (tmp_path / "one.png").write_bytes(b"no image")
    check = result("a.red", "failed").model_copy(
        update=dict.fromkeys(("title", "expected", "observed", "hint", "requirement", "group"), HOSTILE)
        | {"steps": [Step(expected=HOSTILE, observed=HOSTILE)] * 2}
    )
    now = report(
        check,
        check.model_copy(update={"id": "a.two", "verdict": "warning", "steps": []}),
        verdict="failed",
        host=HOSTILE,
        versions={HOSTILE: HOSTILE, "kernel": HOSTILE},
        images=[ReportImage(check="a.red", file="one.png", width=1, height=1, sha256=HOSTILE)],
        metrics=[Metric(check="a.red", name=HOSTILE, value=2, unit=HOSTILE)],
        command=HOSTILE,
        broke_off=HOSTILE,
    )
    gone = [{"id": "a.gone", "title": HOSTILE, "verdict": "passed"}, {"id": "a.two", "verdict": "passed"}]
    metrics = [{"check": "a.two", "name": HOSTILE, "value": 1}]
    past = [before(now, checks=gone, versions={"kernel": "1" + HOSTILE}, metrics=metrics)]
    page = as_page(now, past, tmp_path)
    reader = Reader(page)
    tags = {tag for tag, _ in reader.elements}
    assert "script" not in tags and not reader.all("img") and "b" not in tags
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], attributes
    assert reader.text.count("<script>alert(1)</script>") > 20 and "cannot be shown" in reader.text
    assert "\x1b" not in page and "\u202e" not in page and "{{ 7*7 }}" in reader.text


def test_the_page_needs_nothing_else(tmp_path):
    (tmp_path / "one.png").write_bytes(picture(64))
    now = report(result("a"), images=[ReportImage(check="a", file="one.png", width=64, height=64, sha256="0" * 64)])
    page = as_page(now, [before(now)], tmp_path)
    reader = Reader(page)
    for tag, attributes in reader.elements:
        assert tag not in ("script", "iframe", "object", "embed", "audio", "video", "form"), tag
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in page and "@import" not in page and "http:" not in page and "https:" not in page
    (policy,) = [found["content"] for found in reader.all("meta") if "http-equiv" in found]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    (image,) = reader.all("img")
    assert image["alt"] == "one.png, of the check: Title of a"


def test_an_image_on_the_page_is_small_and_nothing_but_pixels():
    for size, shown in ((1024, 512), (512, 512), (64, 64)):
        kind, _, data = thumbnail(picture(size)).partition(",")
        raw = base64.b64decode(data)
        image = Image.open(io.BytesIO(raw))
        assert kind == "data:image/webp;base64" and image.size == (shown, shown)
        assert b"secret" not in raw and len(raw) < 260_000  # noise, the worst there is
    exact = Image.open(io.BytesIO(base64.b64decode(thumbnail(picture(64)).partition(",")[2]))).convert("RGB")
    assert exact.tobytes() == Image.open(io.BytesIO(picture(64))).convert("RGB").tobytes()
    assert thumbnail(picture(64, "RGBA")) and thumbnail(picture(64, "P")) and thumbnail(picture(64, "L"))
    with pytest.raises(AtelierError, match="not a whole image"):
        thumbnail(picture(64)[:-20])


def test_images_and_measures_say_what_they_are(tmp_path):
    (tmp_path / "one.png").write_bytes(picture(64))
    image = ReportImage(check="a", file="one.png", width=64, height=64, sha256="0" * 64, caption="another seed")
    metric = Metric(check="a", name="a.seconds", value=2, unit="s", caption="the first image")
    reader = Reader(as_page(report(result("a"), images=[image], metrics=[metric]), [], tmp_path))
    assert "Title of a: another seed" in reader.text and "Title of a: the first image" in reader.text
    assert reader.all("img")[0]["alt"] == "another seed, of the check: Title of a"


def test_of_a_failed_check_the_step_that_failed_stands_out():
    steps = [Step(expected="one", observed="held"), Step(expected="two", observed="did not")]
    rows = Reader(as_page(report(result("a", "failed", steps=steps), verdict="failed"), [], None)).all("tr")
    assert [row.get("class") for row in rows if row.get("class") == "held"] == ["held"]
    rows = Reader(as_page(report(result("a", "warning", steps=steps)), [], None)).all("tr")
    assert "held" not in [row.get("class") for row in rows]


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"sources": "upstream", "profile": "cpu"}, []),
        ({"sources": "double", "profile": "cpu"}, ["Doubles stand in"]),
        ({"sources": "double", "profile": "gpu-simulated"}, ["Doubles stand in", "The GPU is simulated"]),
        ({"sources": "upstream", "profile": "cpu", "weights": "random numbers"}, ["The weights are random numbers"]),
    ],
)
def test_what_is_not_the_real_thing_is_told_on_the_page(versions, words):
    told = stand_ins(versions)
    assert [sentence for sentence in told if sentence.startswith(tuple(words))] == told and len(told) == len(words)
    text = Reader(as_page(report(result("a"), versions=versions), [], None)).text
    assert all(sentence in text for sentence in told)


def test_a_missing_image_is_an_error(tmp_path):
    now = report(result("a"), images=[ReportImage(check="a", file="none.png", width=1, height=1, sha256="")])
    with pytest.raises(FileNotFoundError):
        as_page(now, [], tmp_path)


@pytest.mark.parametrize(
    ("earlier", "value", "told", "slow"),
    [
        ([], 2, "first measurement", False),
        ([1], 9, "median of 1 earlier run: 1.00 s", False),
        ([1, 1, 1], 1.5, "median of 3 earlier runs: 1.00 s", False),
        ([1, 1, 1], 1.51, "median of 3 earlier runs: 1.00 s, slower than usual", True),
        ([0.1, 0.1, 0.1], 0.5, "median of 3 earlier runs: 0.10 s", False),
        ([1, 2, 30, 4], 4, "median of 4 earlier runs: 3.00 s", False),
    ],
)
def test_measures_beside_earlier_ones(earlier, value, told, slow):
    now = report(result("a"), metrics=[Metric(check="a", name="a.seconds", value=value, unit="s")])
    one = now.metrics[0].model_dump()
    page = as_page(now, [before(now, metrics=[{**one, "value": found}]) for found in earlier], None)
    text = Reader(page).text
    assert told in text and ("slower than usual" in text) is slow
    assert page.count('<svg class="plot"') == bool(earlier)


def test_a_plot():
    svg = plot([10, 20, 20], 40, 'said "so" & <more>')
    assert 'aria-label="said &#34;so&#34; &amp; &lt;more&gt;"' in svg and 'role="img"' in svg
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert points == [(6, 39), (82, 28), (158, 28), (234, 6)], "from the floor at zero to the largest, evenly spaced"
    assert re.search(r'class="median"[^>]*y1="28.0"', svg) and svg.count('class="then"') == 3
    assert plot([0], 0, "") and "nan" not in plot([0], 0, "") and plot([-1], -5, "")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.5, "s", "0.50 s"),
        (16.62, "s", "16.6 s"),
        (123.4, "s", "123 s"),
        (12844, "MB", "12,844 MB"),
        (0, "W", "0.00 W"),
    ],
)
def test_numbers(value, unit, shown):
    assert number(value, unit) == shown


def test_times():
    assert moment("2026-11-02T08:05:00Z") == "2 November 2026, 08:05 UTC"
    assert took("2026-11-02T08:05:00Z", "2026-11-02T08:05:59Z") == "59 s"
    assert took("2026-11-02T08:05:00Z", "2026-11-02T09:06:05Z") == "61 min 5 s"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run `make status` and `make logs`", "run <code>make status</code> and <code>make logs</code>"),
        ("`<b>`", "<code>&lt;b&gt;</code>"),
        ("one ` alone <b>", "one ` alone &lt;b&gt;"),
        ("none & nothing", "none &amp; nothing"),
        ("%s {} {0} `%s`", "%s {} {0} <code>%s</code>"),
    ],
)
def test_code_in_text(text, shown):
    assert str(codes(text)) == shown


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_text_in_light_and_dark():
    style = (paths.PROJECT / "templates" / "report" / "report.css").read_text()
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{([^}]*)\}", style)
    ]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    for colours in schemes:
        grounds = ("paper", "panel", *(name for name in colours if name.endswith("-tint")))
        for text, ground in itertools.product(("ink", "quiet", "link"), grounds):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for tone in ("passed", "failed", "warning", "skipped"):
            for ground in ("paper", "panel", f"{tone}-tint"):
                assert contrast(colours[tone], colours[ground]) >= 4.5, (tone, ground)
