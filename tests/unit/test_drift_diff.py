"""Edited files as diffs: what lies there against what is put back, without a secret of anybody's."""

import json
from dataclasses import replace

import pytest
from test_drift import COMPOSE, DAEMON_JSON, JOB, PLAIN, SECRET, besides, but, content, daemon, left, there

from atelier import drift, drift_diff
from atelier.doctor.redact import Redactor
from atelier.drift import Tree
from atelier.drift_diff import Diff
from atelier.recorded import Roots
from atelier.uninstall_packages import Kept

PASSWORD = "a-password-that-this-computer-knows"
HIDE = Redactor([PASSWORD])


def diffs(found: Tree, contents: dict[str, bytes] | None = None) -> tuple[Diff, ...]:
    return drift_diff.diffs(PLAIN, found, contents or {}, HIDE)


def edited(path: str) -> Tree:
    return but(path, digest="00")(there())


def test_a_host_as_deployed_has_none() -> None:
    assert diffs(there()) == () and drift_diff.left_alone(PLAIN, there()) == ()


def test_an_edited_file_is_a_diff_from_what_is_there_to_what_is_put_there() -> None:
    wanted = content(COMPOSE).decode()
    first, second, *rest = wanted.splitlines(keepends=True)
    (diff,) = diffs(edited(COMPOSE), {COMPOSE: "".join([first, "mine: 1\n", *rest]).encode()})
    assert diff.problem == f"{COMPOSE} differs" and diff.remedy == ""
    assert "-mine: 1" in diff.lines and f"+{second.rstrip()}" in diff.lines
    assert diff.lines[0].startswith("@@ ") and not any(line.startswith(("---", "+++")) for line in diff.lines)


@pytest.mark.parametrize("path", [SECRET, JOB])
def test_of_a_secret_file_only_that_it_differs(path: str) -> None:
    (diff,) = diffs(edited(path), {})
    assert diff == Diff(f"{path} differs")


def test_of_variables_that_are_not_ours_only_the_name_is_told() -> None:
    path = next(entry.path for entry in PLAIN.entries() if entry.path.endswith("forge-turbo/.env"))
    wanted = content(path)
    added = wanted.replace(b'SHM_SIZE="', b'SHM_SIZE="9') + b"SOMEBODY=4711-mine\n# was 0815-mine\n"
    (diff,) = diffs(edited(path), {path: added})
    told = "\n".join(diff.lines)
    assert "-SOMEBODY=[hidden]" in diff.lines and "-[hidden]" in diff.lines and "-mine" not in told
    assert '-SHM_SIZE="9' in told
    assert "-mine" not in "".join(finding.problem for finding in drift.files(PLAIN, edited(path), {path: added}, {})), (
        "nor does verify"
    )


def test_a_secret_file_is_never_asked_for() -> None:
    assert drift.unlike(PLAIN, edited(SECRET)) == []


@pytest.mark.parametrize(
    "line",
    [
        f"x: {PASSWORD}",
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "command: --api-auth somebody:else-entirely",
        "url: https://me:hunter2222@mirror.example/",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----",
    ],
)
def test_no_secret_of_an_edited_file_is_told(line: str) -> None:
    (diff,) = diffs(edited(COMPOSE), {COMPOSE: content(COMPOSE) + f"{line}\nafter: 1\n".encode()})
    told = "\n".join(diff.lines)
    for secret in (PASSWORD, "wJalrXUtnFEMI", "else-entirely", "hunter2222", "MIIEvQ"):
        assert secret not in told
    assert "-after: 1" in diff.lines and "[hidden]" in told


def test_a_file_that_differs_in_a_secret_alone_says_so() -> None:
    wanted, found = b"a: 1\npassword: one-of-them\n", b"a: 1\npassword: another-one\n"
    assert drift_diff.unified(found, wanted, HIDE) == ("only what is not shown here differs",)


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    (diff,) = diffs(edited(COMPOSE), {COMPOSE: b"\x1b[2Jgone\n"})
    assert "\x1b" not in "".join(diff.lines) and "-?[2Jgone" in diff.lines


def test_no_text() -> None:
    assert drift_diff.unified(b"\xff\xfe\x00", b"a", HIDE) == ("it is no text",)


def test_a_letter_that_is_cut_off_in_the_middle_is_no_reason() -> None:
    found = b"a" * (drift.LARGEST - 1) + "é".encode()[:1]
    assert drift_diff.unified(found, b"a\n", HIDE)[0].startswith("@@")


def test_long_lines_and_long_diffs_are_cut() -> None:
    lines = drift_diff.unified(b"x" * 1000 + b"\n" * 500, b"", HIDE)
    assert max(map(len, lines)) <= drift_diff.WIDEST + 3 and len(lines) == drift_diff.LONGEST + 1
    assert lines[-1].endswith("more lines")


@pytest.mark.parametrize(
    ("found", "problem", "by_hand"),
    [
        (but(COMPOSE, mode="666")(there()), f"{COMPOSE} has mode 666 and must have 644", False),
        (but(COMPOSE, kind="l")(there()), f"{COMPOSE} is a symbolic link and must be a file", False),
        (but(COMPOSE, kind="d")(there()), f"{COMPOSE} is a directory and must be a file", True),
        (daemon(**{"live-restore": False})(there()), f"{DAEMON_JSON}: live-restore is false and must be true", False),
        (
            besides("/opt/atelier/secrets/forge-turbo/old.json")(there()),
            "/opt/atelier/secrets/forge-turbo/old.json is not ours",
            False,
        ),
    ],
)
def test_what_is_put_back_and_what_a_person_has_to_do(found: Tree, problem: str, by_hand: bool) -> None:
    (diff,) = diffs(found)
    assert diff.problem == problem and bool(diff.remedy) is by_hand


def test_what_is_not_ours_is_left_alone_and_named() -> None:
    found = left("/etc/systemd/system/atelier-gpu-containers.service")(besides("/opt/atelier/notes.txt")(there()))
    assert diffs(found) == ()
    assert drift_diff.left_alone(PLAIN, found) == (
        Kept("/etc/systemd/system/atelier-gpu-containers.service", "of an earlier deploy, and nothing asks for it now"),
        Kept("/opt/atelier/notes.txt", "not ours"),
    )


def test_docker_s_settings_are_a_diff_that_keeps_what_the_host_has_of_its_own() -> None:
    proxies = {"http-proxy": "http://me:hunter2222@proxy.example:3128"}
    seen = daemon(**{"live-restore": False, "proxies": proxies})(there())
    text = json.dumps(json.loads(seen.daemon_json), indent=2, sort_keys=True) + "\n"
    first, *more = diffs(replace(seen, daemon_json=text))
    assert first.problem == f"{DAEMON_JSON}: live-restore is false and must be true" and more == []
    told = "\n".join(first.lines)
    assert '-  "live-restore": false' in told and '+  "live-restore": true' in told and "hunter2222" not in told
    assert sum(line.startswith(("-", "+")) for line in first.lines) == 2


def test_of_docker_s_settings_that_not_everybody_may_read_only_our_keys_are_told() -> None:
    found = but(DAEMON_JSON, mode="600")(daemon(**{"live-restore": False})(there()))
    (diff,) = diffs(found)
    assert diff.lines == ()


def test_what_others_added_to_units_and_to_docker_s_settings_is_named() -> None:
    mine = "/etc/systemd/system/atelier-monitor.service.d/mine.conf"
    theirs = "/etc/systemd/system/ssh.service.d/theirs.conf"
    found = replace(daemon(**{"data-root": "/disk", "proxies": {"http-proxy": "secret"}})(there()))
    found = replace(found, kept=frozenset({*found.kept, mine, theirs}))
    assert drift_diff.left_alone(PLAIN, found) == (
        Kept(mine, "not ours"),
        Kept(f"data-root, proxies in {DAEMON_JSON}", "not ours"),
    )


def test_a_host_whose_directories_move_is_compared_where_they_are_now() -> None:
    roots = Roots("/opt/other", "/data/other", "/data/other/models", "/big/outputs")
    moved = drift_diff.as_recorded(PLAIN, roots)
    declared = {entry.path for entry in moved.entries()}
    assert "/opt/other/services/gateway/compose.yaml" in declared and "/big/outputs" in declared
    assert not any(path.startswith(("/opt/atelier", "/srv/atelier")) for path in declared)
    assert drift_diff.as_recorded(PLAIN, None) == PLAIN


def test_printed_lines() -> None:
    told = [Diff("a differs", ("@@ -1 +1 @@", "-x", "+y")), Diff("b is a directory", remedy="remove it")]
    assert drift_diff.lines(told) == [
        "a differs",
        "    @@ -1 +1 @@",
        "    -x",
        "    +y",
        "b is a directory -> remove it",
    ]
