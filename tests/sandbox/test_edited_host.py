"""A host that somebody edited by hand: what differs is shown before it is put back, and what is not ours stays and is named."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from following import follow
from harness import UNCHANGED, Sandbox, changes, copy_checkout

from atelier import credentials
from atelier.doctor.redact import known_secrets
from atelier.target import sandbox_target

pytestmark = pytest.mark.sandbox
SERVICE = "/opt/atelier/services/forge-turbo"
COMPOSE, ENV, NOTES = f"{SERVICE}/compose.yaml", f"{SERVICE}/.env", f"{SERVICE}/notes.txt"
UNIT = "/etc/systemd/system/atelier-monitor.service"
CREDENTIALS = "/opt/atelier/secrets/forge-turbo"
DROP_IN = "/etc/systemd/system/docker.service.d/mine.conf"
DAEMON_JSON = "/etc/docker/daemon.json"
IN_ENV, IN_CREDENTIALS, IN_TEXT, IN_PROXY = "pW-of-somebody-4711", "pW-among-ours-0815", "hunter2222", "proxy-pW-9000"
"""What somebody put into files, and nobody is to read anywhere."""
EDITS = f"""
set -e
sed -i 's/^services:/services:  # by hand/' {COMPOSE}
sed -i '1i # https://me:{IN_TEXT}@mirror.example/' {COMPOSE}
printf 'SOMEBODY={IN_ENV}\\n' >>{ENV}
f=$(find {CREDENTIALS} -type f | sort | head -n 1); printf ' {IN_CREDENTIALS}' >>"$f"; echo "$f"
sed -i 's/^Nice=10$/Nice=19/' {UNIT}
python3 - <<'X'
import json
with open("{DAEMON_JSON}") as file:
    document = json.load(file)
document |= {{"live-restore": False, "proxies": {{"http-proxy": "http://me:{IN_PROXY}@127.0.0.1:3128"}}}}
with open("{DAEMON_JSON}", "w") as file:
    file.write(json.dumps(document, indent=2, sort_keys=True) + "\\n")
X
echo mine >{NOTES}
mkdir -p {DROP_IN.rpartition("/")[0]}; printf '[Service]\\nEnvironment=MINE=1\\n' >{DROP_IN}; systemctl daemon-reload
docker run -d --name theirs --entrypoint sleep "$(docker inspect -f '{{{{.Config.Image}}}}' gateway)" infinity >/dev/null
"""
STATE = f"""
sha256sum {COMPOSE} {ENV} {UNIT} {DAEMON_JSON} {NOTES} $(find {CREDENTIALS} -type f | sort)
docker inspect -f '{{{{.Id}}}} {{{{.Name}}}} {{{{.State.StartedAt}}}}' $(docker ps -aq --no-trunc | sort)
"""
THEIRS = f"docker inspect -f '{{{{.Id}}}} {{{{.State.Status}}}} {{{{.State.StartedAt}}}}' theirs; sha256sum {NOTES} {DROP_IN}"


@dataclass(frozen=True)
class Edited:
    """The host, its files before the edits, and which file of credentials was edited."""

    sandbox: Sandbox
    before: str
    credential: str

    def root(self, script: str, stdin: str = "") -> str:
        return self.sandbox.root(script, stdin)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edited]:
    found = Sandbox(f"sandbox-edited-{os.getpid()}")
    with found.running():
        moved = replace(found, checkout=copy_checkout(tmp_path_factory.mktemp("edited") / "checkout"))
        moved.deploy()
        before = moved.root(f"cat {COMPOSE} {ENV} {UNIT} $(find {CREDENTIALS} -type f | sort) | sha256sum")
        yield Edited(moved, before, moved.root(EDITS).splitlines()[-1])


def require_no_secret(answer: str, host: Edited) -> None:
    """Neither what somebody put into files nor what is ours is in the answer."""
    folder = host.sandbox.checkout / ".secrets" / host.sandbox.name
    settings = sandbox_target(host.sandbox.name, host.sandbox.checkout).settings
    ours = known_secrets(credentials.load(folder), folder, settings, {})
    assert ours and not [secret for secret in {*ours, IN_ENV, IN_CREDENTIALS, IN_TEXT, IN_PROXY} if secret in answer]


def section(answer: str, title: str) -> str:
    """The lines of a section of the plan."""
    match = re.search(rf"^  {title}\n((?:    .*\n)*)", answer, re.M)
    assert match, answer
    return match[1]


def expect_edits(answer: str, host: Edited) -> None:
    """Every edit is shown, as a diff where it is no secret; what is not ours is named."""
    require_no_secret(answer, host)
    back = section(answer, "Puts back")
    diffs = dict(re.findall(r"^    (/\S+?):? ((?:differs|live-restore).*\n(?:        .*\n)*)", back, re.M))
    assert {*diffs} == {COMPOSE, ENV, UNIT, DAEMON_JSON, host.credential}, back
    assert "-services:  # by hand" in diffs[COMPOSE] and "+services:" in diffs[COMPOSE]
    assert "-# https://[hidden]@mirror.example/" in diffs[COMPOSE]
    assert "-Nice=19" in diffs[UNIT] and "+Nice=10" in diffs[UNIT]
    assert '-  "live-restore": false' in diffs[DAEMON_JSON] and '+  "live-restore": true' in diffs[DAEMON_JSON]
    assert "-SOMEBODY=[hidden]" in diffs[ENV] and diffs[host.credential] == "differs\n"
    alone = section(answer, "Leaves alone")
    for name in (NOTES, DROP_IN, f"proxies in {DAEMON_JSON}", "containers theirs"):
        assert f"    {name}: not ours\n" in alone


def test_a_plan_shows_what_was_edited_and_changes_nothing(host: Edited) -> None:
    before = host.root(STATE)
    answer = host.sandbox.atelier("plan", "--sources", "double", expect=2)
    expect_edits(answer, host)
    assert "nothing moves, makes room or goes" in answer and host.root(STATE) == before


def test_reprovision_shows_it_and_puts_it_back(host: Edited) -> None:
    other = host.root(THEIRS)
    _, answer = follow("a host edited by hand", host.sandbox, expect=(2, 1))
    expect_edits(answer, host)
    assert re.findall(r"^failed   (\S+)", answer, re.M) == ["drift.files"]
    assert f"Verdict: failed. drift.files: {NOTES} is not ours -> " in answer, "and that alone"
    shown, done = answer.index("Puts back"), [answer.index(f"  + {step}") for step in changes(answer)]
    assert done and shown < min(done), "shown before anything is put back"
    files = f"cat {COMPOSE} {ENV} {UNIT} $(find {CREDENTIALS} -type f | sort) | sha256sum"
    assert host.root(files) == host.before
    settings = json.loads(host.root(f"cat {DAEMON_JSON}"))
    assert settings["live-restore"] is True and IN_PROXY in settings["proxies"]["http-proxy"]
    unit = host.root("systemctl show -p Nice,NeedDaemonReload atelier-monitor.service").split()
    assert {*unit} == {"Nice=10", "NeedDaemonReload=no"}
    assert host.root(THEIRS) == other


def test_then_nothing_is_left_to_show_but_what_is_not_ours(host: Edited) -> None:
    answer = host.sandbox.atelier("plan", "--sources", "double")
    assert "Puts back" not in answer and f"{NOTES}: not ours" in section(answer, "Leaves alone")
    host.root(f"rm {NOTES}")
    answer = host.sandbox.atelier("reprovision", "--sources", "double")
    assert NOTES not in section(answer, "Leaves alone")
    assert "Puts back" not in answer and re.search(UNCHANGED, answer)


def test_what_the_doctor_packs_has_no_password_of_the_host_s_own(host: Edited) -> None:
    """Docker's settings of before the first deploy are in the manifest, those of now beside it."""
    manifest = "/srv/atelier/state/manifest.json"
    document = json.loads(host.root(f"cat {manifest}"))
    document["found"]["daemon_json"] = [host.root(f"cat {DAEMON_JSON}")]
    host.root(f"cat >{manifest}", json.dumps(document, indent=1))
    answer = host.sandbox.atelier("doctor", "--bundle")
    (path,) = re.findall(r"Support bundle: (\S+)", answer)
    with tarfile.open(path) as archive:
        packed = {entry.name: archive.extractfile(entry).read().decode() for entry in archive if entry.isfile()}
    told = [text for name, text in packed.items() if name.endswith(("/manifest.txt", "/docker.txt"))]
    assert len(told) == 2 and all("http-proxy" in text for text in told)
    require_no_secret("\n".join([answer, *packed.values()]), host)


def test_another_number_of_the_service_user_alone(host: Edited) -> None:
    """Here, as the host is as deployed: the user of ours gets it, and all files of its own with it."""
    owned = "find /srv/atelier /opt/atelier -xdev -uid {} ! -path '*/build/*' -printf '%P %G\\n' | sort"
    before = host.root(owned.format(10001)).replace("10001", "10777")
    file = host.sandbox.checkout / "group_data/sandbox.py"
    file.write_text(f"{file.read_text()}\nservice_uid = 10777\n")
    refused = host.sandbox.deploy(expect=1)
    assert "exists with id 10001, not 10777" in refused and "make reprovision" in refused
    host.root("getent group 10777 || groupadd -g 10777 theirs")
    assert "group id 10777 belongs to `theirs`" in host.sandbox.atelier(
        "reprovision", "--sources", "double", "--yes", expect=1
    )
    host.root("groupdel theirs")
    without = host.sandbox.atelier("reprovision", "--sources", "double", expect=1)
    assert "user     atelier: id 10001 -> 10777" in without and "nothing was changed" in without
    assert host.root("id -u atelier; id -g atelier") == "10001\n10001"
    with host.sandbox.started("reprovision", "--sources", "double", "--yes") as process:
        assert process.stdout and any("Give atelier the user id 10777" in line for line in process.stdout)
        process.kill()
    stopped = host.sandbox.deploy(expect=1)
    assert "a reprovision of this host was begun" in stopped and "finish it: make reprovision" in stopped
    answer = host.sandbox.atelier("reprovision", "--sources", "double", "--yes")
    assert host.root("id -u atelier; id -g atelier; getent group atelier | cut -d: -f3") == "10777\n10777\n10777"
    assert host.root(owned.format(10001)) == "" and {*before.splitlines()} <= {
        *host.root(owned.format(10777)).splitlines()
    }
    assert host.root("docker exec comfyui-qwen id -u; docker exec forge-turbo id -u") == "10777\n10777"
    assert "0 bytes fetched" in answer and re.search(
        UNCHANGED, host.sandbox.atelier("reprovision", "--sources", "double")
    )
