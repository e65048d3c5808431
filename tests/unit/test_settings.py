"""Settings: bad input gives one message that names file, key, problem and remedy."""

from pathlib import Path

import pytest

from atelier import settings_page
from atelier.errors import AtelierError
from atelier.settings import build_settings, merge, read_group, read_hosts
from atelier.target import resolve

BAD = {
    "unknown key": ({"services": {"comfyui": {"prot": 1}}}, ["services.comfyui.prot", "did you mean `port`"]),
    "unknown key at the top": ({"porfile": "cpu"}, ["porfile", "did you mean `profile`"]),
    "wrong type": ({"services": {"forge": {"port": "many"}}}, ["services.forge.port", "'many'"]),
    "port out of range": ({"services": {"forge": {"port": 70000}}}, ["services.forge.port", "65535"]),
    "port clash": (
        {"services": {"forge": {"port": 8188}}},
        ["services.forge.port: are both 8188", "a port of its own"],
    ),
    "relative path": ({"data_root": "srv/atelier"}, ["data_root", "absolute"]),
    "path with dots": ({"data_root": "/srv/../etc"}, ["data_root", "'..'"]),
    "path with a shell character": ({"data_root": "/srv/$HOME"}, ["data_root", "letters"]),
    "system directory": ({"data_root": "/etc"}, ["data_root", "system"]),
    "system directory, slashes": ({"data_root": "//"}, ["data_root", "system"]),
    "below a system directory": ({"data_root": "/etc/atelier"}, ["data_root", "system"]),
    "a home": ({"data_root": "/home/alice"}, ["data_root", "system"]),
    "docker's own": ({"data_root": "/var/lib/docker/x"}, ["data_root", "system"]),
    "nested roots": ({"data_root": "/opt/atelier/data"}, ["config_root, data_root", "inside the other"]),
    "config in data": ({"config_root": "/srv/atelier/config"}, ["config_root, data_root", "inside the other"]),
    "models in a system directory": ({"models_dir": "/usr/share/models"}, ["models_dir", "system"]),
    "models in outputs": (
        {"models_dir": "/srv/atelier/outputs/models"},
        ["models_dir, outputs_dir", "inside the other"],
    ),
    "models are outputs": (
        {"models_dir": "/a/b", "outputs_dir": "/a/b"},
        ["models_dir, outputs_dir", "inside the other"],
    ),
    "models in the state": ({"models_dir": "/srv/atelier/state/m"}, ["data_root, models_dir", "/srv/atelier/state"]),
    "outputs are the users' files": (
        {"outputs_dir": "/srv/atelier/users"},
        ["data_root, outputs_dir", "/srv/atelier/users"],
    ),
    "data in outputs": (
        {"outputs_dir": "/srv/a", "data_root": "/srv/a/b"},
        ["data_root, outputs_dir", "inside the other"],
    ),
    "models are the data": ({"models_dir": "/srv/atelier"}, ["data_root, models_dir", "inside the other"]),
    "outputs in config": ({"outputs_dir": "/opt/atelier/out"}, ["config_root, outputs_dir", "inside the other"]),
    "plaintext on a public address": ({"bind_address": "0.0.0.0"}, ["bind_address", "tls.mode", "make tunnel"]),
    "not an address": ({"bind_address": "localhost"}, ["bind_address", "IP address"]),
    "unknown profile": ({"profile": "tpu"}, ["profile", "'gpu', 'cpu' or 'gpu-simulated'"]),
    "gpu without one": (
        {"profile": "cpu", "services": {"forge": {"gpu": "0"}}},
        ["services.forge.gpu", "profile: gpu"],
    ),
    "nothing enabled": (
        {"services": {"forge": {"enabled": False}, "comfyui": {"enabled": False}}},
        ["enable at least one"],
    ),
    "container clash": ({"gateway_container": "forge-turbo"}, ["gateway_container: are both forge-turbo"]),
    "container name": ({"gateway_container": "My Gateway"}, ["gateway_container"]),
    "base without digest": ({"images": {"base": "debian:12"}}, ["images.base", "sha256"]),
    "certificate without mode": ({"tls": {"certificate": "/etc/ssl/a.pem"}}, ["tls", "mode `files`"]),
    "files without key": ({"tls": {"mode": "files", "certificate": "a"}}, ["tls", "needs certificate and key"]),
    "acme without domain": ({"bind_address": "0.0.0.0", "tls": {"mode": "acme"}}, ["tls", "needs domain"]),
    "domain without acme": ({"tls": {"mode": "internal", "domain": "a.org"}}, ["tls", "needs mode `acme`"]),
    "mail without acme": ({"tls": {"mode": "internal", "email": "a@b.org"}}, ["tls", "email"]),
    "domain that is an address": (
        {"bind_address": "0.0.0.0", "tls": {"mode": "acme", "domain": "10.0.0.1"}},
        ["tls.domain", "'10.0.0.1'"],
    ),
    "acme on loopback": (
        {"tls": {"mode": "acme", "domain": "a.org"}},
        ["tls.mode", "cannot reach 127.0.0.1", "bind_address: 0.0.0.0"],
    ),
    "a service where acme asks": (
        {
            "bind_address": "0.0.0.0",
            "tls": {"mode": "acme", "domain": "a.org"},
            "services": {"comfyui": {"port": 443}},
        },
        ["services.comfyui.port: 443", "another port"],
    ),
    "names without an own authority": ({"tls": {"names": ["a.org"]}}, ["tls", "names needs mode `internal`"]),
    "a bare name": (
        {"tls": {"mode": "internal", "names": ["localhost", "dev"]}},
        ["tls", "`dev`", "give a full name"],
    ),
    "a name with a star": ({"tls": {"mode": "internal", "names": ["*.a.org"]}}, ["tls.names"]),
    "hsts with an own authority": ({"tls": {"mode": "internal", "hsts": True}}, ["tls", "lock browsers out"]),
    "mirror": ({"models": {"mirrors": ["ftp://x"]}}, ["models.mirrors"]),
    "mirror with a password": ({"models": {"mirrors": ["http://me:word@x/"]}}, ["models.mirrors"]),
    "mirror with a query": ({"models": {"mirrors": ["http://x/?a"]}}, ["models.mirrors"]),
}


@pytest.mark.parametrize("values,expected", BAD.values(), ids=BAD.keys())
def test_bad_settings_name_origin_key_and_remedy(values: dict, expected: list[str]) -> None:
    with pytest.raises(AtelierError) as raised:
        build_settings([("group_data/all.py", {"profile": "gpu"}), ("hosts.yml: hosts.a.settings", values)])
    message = str(raised.value)
    assert "hosts.yml: hosts.a.settings" in message
    assert "nothing was touched" in message
    for part in expected:
        assert part in message


PLACES = {
    "by themselves": ({}, "/srv/atelier/models", "/srv/atelier/outputs/forge"),
    "with the data": ({"data_root": "/data/a"}, "/data/a/models", "/data/a/outputs/forge"),
    "the models elsewhere": ({"models_dir": "/big/models/"}, "/big/models", "/srv/atelier/outputs/forge"),
    "the outputs elsewhere": ({"outputs_dir": "/nas/out"}, "/srv/atelier/models", "/nas/out/forge"),
    "under other names within the data": (
        {"models_dir": "/srv/atelier/weights", "outputs_dir": "/srv/atelier/images"},
        "/srv/atelier/weights",
        "/srv/atelier/images/forge",
    ),
    "both beside each other": ({"models_dir": "/d/m", "outputs_dir": "/d/m2"}, "/d/m", "/d/m2/forge"),
}


@pytest.mark.parametrize("values,models,outputs", PLACES.values(), ids=PLACES.keys())
def test_weights_and_outputs_lie_with_the_data_or_where_the_settings_say(
    values: dict, models: str, outputs: str
) -> None:
    settings = build_settings([("test", values)])
    assert (settings.models_path(), settings.outputs_path("forge")) == (models, outputs)
    assert settings.outputs_path("forge") == f"{settings.outputs_path()}/forge"
    assert settings.users_path("forge") == f"{settings.data_root}/users/forge" == f"{settings.users_path()}/forge"


def test_the_origin_is_the_layer_that_holds_the_key() -> None:
    with pytest.raises(AtelierError, match=r"^group_data/lab\.py: services\.comfyui\.port"):
        build_settings(
            [("group_data/lab.py", {"services": {"comfyui": {"port": 0}}}), ("hosts.yml", {"profile": "cpu"})]
        )


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(AtelierError) as raised:
        build_settings([("a", {"profile": "x", "data_root": "y"})])
    assert "profile" in str(raised.value) and "data_root" in str(raised.value)


def test_later_layers_win_key_by_key() -> None:
    settings = build_settings(
        [
            ("a", {"services": {"comfyui": {"port": 1000, "shm_size": "1g"}}}),
            ("b", {"services": {"comfyui": {"port": 2000}}}),
        ]
    )
    assert (settings.services.comfyui.port, settings.services.comfyui.shm_size) == (2000, "1g")
    assert merge({"a": [1]}, {"a": [2]}) == {"a": [2]}


def test_defaults_are_the_contract() -> None:
    settings = build_settings([])
    assert (settings.bind_address, settings.config_root, settings.data_root) == (
        "127.0.0.1",
        "/opt/atelier",
        "/srv/atelier",
    )
    assert {name: (s.container, s.port) for name, s in settings.enabled().items()} == {
        "comfyui": ("comfyui-qwen", 8188),
        "forge": ("forge-turbo", 7860),
    }


@pytest.mark.parametrize(
    "text,expected",
    [
        ("hosts: [", "not readable as YAML"),
        ("machines: {}", "expected one key, `hosts`"),
        ("hosts: {sandbox: {address: a}}", "hosts.sandbox: not a usable name"),
        ("hosts: {a: {adress: b}}", "hosts.a.address"),
        ("hosts: {a: {address: 'x; rm'}}", "hosts.a.address"),
    ],
)
def test_bad_hosts_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text(text)
    with pytest.raises(AtelierError, match=expected):
        read_hosts(path)


def test_group_data(tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text("import os\nprofile = 'cpu'\n_hidden = 1\nCONSTANT = 2\ndef helper(): ...\n")
    assert read_group(tmp_path, "lab", required=True) == ("group_data/lab.py", {"profile": "cpu"})
    assert read_group(tmp_path, "all", required=False) == ("group_data/all.py", {})
    with pytest.raises(AtelierError, match="group `nowhere` has no"):
        read_group(tmp_path, "nowhere", required=True)
    (tmp_path / "broken.py").write_text("profile =")
    with pytest.raises(AtelierError, match="SyntaxError"):
        read_group(tmp_path, "broken", required=True)


def project(tmp_path: Path, hosts: str = "") -> Path:
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data" / "sandbox.py").write_text("profile = 'cpu'\n")
    (tmp_path / "group_data" / "lab.py").write_text("max_upload_mb = 7\n")
    if hosts:
        (tmp_path / "hosts.yml").write_text(hosts)
    return tmp_path


def test_without_anything_the_target_is_the_sandbox(tmp_path: Path) -> None:
    (target,) = resolve("", "", project(tmp_path))
    assert (target.name, target.kind, target.settings.profile) == ("sandbox", "sandbox", "cpu")


def test_host_is_an_address(tmp_path: Path) -> None:
    (target,) = resolve("ops@gpu.example:2222", "", project(tmp_path))
    assert (target.name, target.kind, target.destination.user, target.destination.port) == (
        "gpu.example",
        "host",
        "ops",
        2222,
    )


HOSTS = "hosts: {a: {address: ops@a.example, groups: [lab], settings: {profile: cpu}}, b: {address: 'root@[2001:db8::1]:22'}}"


def test_limit_picks_hosts_with_their_settings(tmp_path: Path) -> None:
    folder = project(tmp_path, HOSTS)
    a, b = resolve("", "all", folder)
    assert (a.settings.max_upload_mb, a.settings.profile, b.settings.max_upload_mb) == (7, "cpu", 500)
    assert (b.destination.host, b.destination.port) == ("2001:db8::1", 22)
    assert [target.name for target in resolve("", "b", folder)] == ["b"]


@pytest.mark.parametrize(
    "host,limit,expected",
    [
        ("", "", "say which host"),
        ("", "c", "has no c"),
        ("x", "a", "both given"),
        ("-oProxyCommand=evil", "", "not an address"),
        ("a b", "", "not an address"),
        ("../../etc", "", "not an address"),
        ("user@host:99999", "", "not an address"),
    ],
)
def test_bad_targets(tmp_path: Path, host: str, limit: str, expected: str) -> None:
    with pytest.raises(AtelierError, match=expected):
        resolve(host, limit, project(tmp_path, HOSTS))


def test_configuration_page_is_current() -> None:
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), "run `make docs`"


def test_every_setting_is_described() -> None:
    assert [
        key for key, _, description in settings_page.rows() if len(description) < 15 or description.startswith("None")
    ] == []
