"""A report that is shown to others tells nothing of whose host it was."""

import json
import re

import pytest

from atelier.errors import AtelierError
from atelier.report.neutral import Neutral, main, neutral_page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("203.0.113.77 refuses, 10.1.2.3:8188 too", "192.0.2.1 refuses, 192.0.2.2:8188 too"),
        ("10.1.2.3 and 10.1.2.3", "192.0.2.1 and 192.0.2.1"),
        ("172.18.0.0/16", "192.0.2.1/16"),
        ("127.0.0.1:7860 0.0.0.0 ::1 [::]:80", "127.0.0.1:7860 0.0.0.0 ::1 [::]:80"),
        ("fe80::1c2d:3eff:fe4f:5a6b and 2a01:4f8::2", "2001:db8::1 and 2001:db8::2"),
        ("at 08:57:10Z, 2026-11-22T08:41:10Z, 0:01:40", "at 08:57:10Z, 2026-11-22T08:41:10Z, 0:01:40"),
        ("v1.10.1-1.10.1 1.2.3.4.5 580.105.08", "v1.10.1-1.10.1 1.2.3.4.5 580.105.08"),
        ("9999.1.1.1 300.1.1.1", "9999.1.1.1 300.1.1.1"),
        ("aa:bb:cc:dd:ee:ff aa:bb:cc:dd:ee:ff", "00:00:5e:00:53:01 00:00:5e:00:53:01"),
        ("0000:01:00.0 and 00000000:C1:00.0", "0000:01:00.0 and 00000000:C1:00.0"),
        ("/home/jane/atelier, '/home/jane'", "/home/operator/atelier, '/home/operator'"),
        ("GPU-8f14e45f-ceea-367a-9a36-dedd4bea2543", "GPU-00000000-0000-0000-0000-000000000001"),
        ("maria@studio-box.lan on studio-box", "operator@gpu1.example on gpu1"),
        ("sha256:ab:cd", "sha256:ab:cd"),
    ],
)
def test_names_and_addresses(text, shown):
    names = {"maria": "operator", "studio-box": "gpu1", "studio-box.lan": "gpu1.example"}
    assert Neutral(names)(text) == shown


def test_the_same_thing_has_the_same_name_everywhere():
    value = {"10.0.0.1": ["10.0.0.2", {"x": "10.0.0.1"}], "number": 7, "none": None}
    assert Neutral({})(value) == {"192.0.2.1": ["192.0.2.2", {"x": "192.0.2.1"}], "number": 7, "none": None}


def check(observed: str) -> dict:
    fields = {"id": "a.x", "group": "a", "title": "A", "verdict": "failed", "seconds": 1, "expected": "closed"}
    return {**fields, "observed": observed, "hint": "close 10.9.8.7"}


def put(folder, stamp: str, **more) -> None:
    document = {
        "schema": 1,
        "host": "studio-box",
        "started": "2026-11-21T23:00:00Z",
        "finished": "2026-11-21T23:01:00Z",
        "verdict": "failed",
        "doubles": False,
        "checks": [check("studio-box: 10.9.8.7 is open to maria")],
        "versions": {"kernel": "6.1 of studio-box"},
        "images": [],
        "matrices": [{"check": "a.x", "columns": ["stranger"], "rows": []}],
        "metrics": [{"check": "a.x", "name": "a.seconds", "value": 3, "unit": "s"}],
        "command": "make verify HOST=maria@10.9.8.7",
        **more,
    }
    (folder / stamp).mkdir(parents=True)
    (folder / stamp / "report.json").write_text(json.dumps(document))


def test_a_page_to_be_shown(tmp_path):
    passed = [{**check("fine"), "verdict": "passed", "hint": ""}]
    put(tmp_path, "20261120T230100Z", checks=passed, verdict="passed", versions={"kernel": "6.0 of studio-box"})
    put(tmp_path, "20261121T230100Z")
    put(tmp_path, "20261122T230100Z")
    (tmp_path / "latest").symlink_to("20261121T230100Z")
    main([str(tmp_path / "latest"), str(tmp_path / "shown.html"), "--host", "box", "--replace", "maria=operator"])
    page = (tmp_path / "shown.html").read_text()
    assert not re.search("studio|maria|10\\.9", page) and "access.html" not in page
    for part in ("box: 192.0.2.1 is open to operator", "HOST=operator@192.0.2.1", "6.0 of box", "of 1 earlier run: "):
        assert part in page, part


def test_what_is_still_there_is_told(tmp_path):
    put(tmp_path, "20261121T230100Z", checks=[check("x")], versions={"Passed": "x"})
    with pytest.raises(AtelierError, match="still in the page: Failed"):
        neutral_page(tmp_path / "20261121T230100Z", "box", {"Failed": "x"})
