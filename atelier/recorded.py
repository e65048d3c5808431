"""What a host has recorded of itself: where its data lies, what runs, and everything on it that is ours. Pure.

The anchor is a file in a fixed place, so that the record is found on a host whose settings name other directories by now.
Documents are texts by name, as `script` prints and `documents` reads them: `anchor`, `unit`, `config` and `place` (the
directories of configuration and state as they were found), `instance`, `credentials`, `schema`, `deployed`, `manifest`, and
where schema 1 says too little, `env` and `owner`.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import NotRequired, TypedDict

from atelier import SCHEMA
from atelier.errors import Finding
from atelier.gpu.facts import STRICT
from atelier.settings import Settings
from atelier.tree import Directory, Entry, File

ANCHOR_DIRECTORY = "/etc/atelier"
ANCHOR = f"{ANCHOR_DIRECTORY}/host.json"
JOURNAL = f"{ANCHOR_DIRECTORY}/reprovision.json"
"""What a reprovision that is not finished was at."""
UNIT = "/etc/systemd/system/atelier-weights.service"
"""In a fixed place since the first schema, and names store and state."""
SECTION = "::atelier::"
PREFIX = f"{SECTION}recorded-"

Documents = Mapping[str, str]


@dataclass(frozen=True)
class Roots:
    """The directories of one host: those of its settings, or those that it has recorded."""

    __pydantic_config__ = STRICT
    config_root: str
    data_root: str
    models_dir: str
    outputs_dir: str

    def state(self) -> str:
        """Where the host records what it carries."""
        return f"{self.data_root}/state"

    def users(self) -> str:
        """Where the folders of all services' users lie."""
        return f"{self.data_root}/users"

    def differing(self, other: "Roots") -> dict[str, tuple[str, str]]:
        """By name of the setting, this one's and the other's directory, where they differ."""
        pairs = {name: (mine, getattr(other, name)) for name, mine in asdict(self).items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Service:
    """One service as the last deploy left it. port: of the host, none of the gateway or where it is not recorded."""

    container: str
    config: str
    port: int | None = None


@dataclass(frozen=True)
class Recorded:
    """What a host has recorded, in the present schema whatever it was written in."""

    schema: int = 0
    """That it was written in; 0 where nothing is recorded."""
    release: str = ""
    """That wrote it."""
    instance: str = ""
    fingerprint: str = ""
    """Of the credentials that it was given last."""
    roots: Roots | None = None
    """None where nothing is recorded."""
    place: str = ""
    """The directory in which the state was found: that of the roots, or of the settings where a move was interrupted; empty
    where it is in neither."""
    service_user: str = ""
    service_uid: int | None = None
    bind_address: str = ""
    services: Mapping[str, Service] = field(default_factory=dict)
    """By name: `comfyui`, `forge`, `gateway`."""
    created: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The manifest: everything of ours on the host, by kind."""
    found: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What of `created` was there before we first declared it, by kind; `packages` are all that were installed before the
    first deploy, each `name=version`. A kind that is missing was not recorded: the host is of schema 1."""
    wrote: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By path of a file of ours the sha256 of what we wrote there last, and of what we wrote before that: a killed deploy may
    have left either. A file that is missing here is the host's own work (a unit's link, a log), or was recorded by schema 1."""
    deployed: Mapping[str, Any] = field(default_factory=dict)
    """state/deployed.json as a whole; empty before the first deploy has ended."""
    damaged: tuple[str, ...] = ()
    """The documents that are there and cannot be read."""

    def ours(self, kind: str) -> frozenset[str]:
        """What of a kind is ours and was not there before."""
        return self.created.get(kind, frozenset()) - self.found.get(kind, frozenset())

    def gpus(self) -> dict[str, str]:
        """UUID by service, as the last deploy gave them."""
        return dict(self.deployed.get("gpus", {}))

    def refusal(self) -> Finding | None:
        """Why this release must not touch the host: a later one wrote its state."""
        return later(self.schema, self.release)


def later(schema: int, release: str) -> Finding | None:
    """Why this release must not touch a host whose state has that schema, written by that release; None where it may."""
    if schema <= SCHEMA:
        return None
    by = f", of release {release}" if release else ""
    return Finding(
        f"the host was deployed by a later release (state schema {schema}{by}; this one knows {SCHEMA})",
        "use that release or a later one: state is carried forward, never back",
    )


def roots_of(settings: Settings) -> Roots:
    """The directories that the settings name."""
    return Roots(settings.config_root, settings.data_root, settings.models_path(), settings.outputs_path())


def elsewhere(roots: Roots | None, place: str, settings: Settings) -> list[Finding]:
    """One finding for each directory that the settings name otherwise than the host has it, or for state that is gone.

    roots, place: as in Recorded.
    """
    if roots is None:
        return []
    if not place:
        return [
            Finding(
                f"this host was deployed before, and its state is not in {roots.state()}",
                f"mount the disk of {roots.data_root}, or bring back what was moved away; where it is gone for good, remove "
                f"{ANCHOR} and {UNIT} on the host",
            )
        ]
    wanted = roots_of(settings)
    return [
        Finding(
            f"{what} of this host {'lie' if what.endswith('s') else 'lies'} in {there}; the settings say {here}",
            f"`make reprovision` moves {'them' if what.endswith('s') else 'it'} there; or set {name}: {there}",
        )
        for name, (there, here) in roots.differing(wanted).items()
        if not _goes_along(name, roots, wanted)
        for what in [WHAT[name]]
    ]


WHAT = {
    "config_root": "the configuration",
    "data_root": "the data",
    "models_dir": "the weights",
    "outputs_dir": "the outputs",
}


def _goes_along(name: str, there: Roots, here: Roots) -> bool:
    """Whether a directory keeps its place below data that moves."""
    below = {str(getattr(roots, name)).removeprefix(f"{roots.data_root}/") for roots in (there, here)}
    return len(below) == 1


def anchor(settings: Settings, instance: str) -> tuple[Entry, ...]:
    """The anchor and its directory, as files of the host."""
    return (Directory(ANCHOR_DIRECTORY), File(ANCHOR, _anchor(roots_of(settings), instance).encode()))


def _anchor(roots: Roots, instance: str) -> str:
    return json.dumps({"schema": SCHEMA, "instance": instance, **asdict(roots)}, indent=1) + "\n"


def state_shell(settings: Settings, root: str = "") -> str:
    """Shell that sets `config`, `data` and `state`: the host's directories as recorded, else those of the settings.

    `state` begins with root, where /etc and all else lie, for tests.
    """
    own = shlex.quote(f"{root}{settings.state_dir()}")
    # A move that was interrupted may have brought the state there before the anchor.
    return f"""
recorded() {{ sed -n "s|$1|\\\\1|p" "{root}$2" 2>/dev/null | head -n 1; }}
config=$(recorded '^ *"config_root": *"\\([^"]*\\)".*' {ANCHOR}) data=$(recorded '^ *"data_root": *"\\([^"]*\\)".*' {ANCHOR})
[ -n "$data" ] || data=$(recorded '^RequiresMountsFor=[^ ]* \\(/.*\\)/state/weights$' {UNIT})
[ -n "$config" ] || config=$(recorded '^WorkingDirectory=\\(/.*\\)/lib$' {UNIT})
config=${{config:-{shlex.quote(settings.config_root)}}} data=${{data:-{shlex.quote(settings.data_root)}}}
state={root}$data/state; [ -d "$state" ] || [ ! -d {own} ] || state={own}
"""


def script(settings: Settings, root: str = "", *, whole: bool = True) -> str:
    """A POSIX shell script that prints the documents, and changes nothing.

    whole: the manifest as well. root: where /etc and all else lie, for tests.
    """
    manifest = 'd manifest; cat "$state/manifest.json" 2>/dev/null' if whole else ""
    return f"""
d() {{ printf '\\n%s\\n' "{PREFIX}$1"; }}
{state_shell(settings, root)}
d anchor; cat {root}{ANCHOR} 2>/dev/null
d unit; grep -E '^(RequiresMountsFor|WorkingDirectory)=' {root}{UNIT} 2>/dev/null
d config; echo "$config"
d place; [ ! -d "$state" ] || echo "${{state#{root}}}"
for f in instance credentials schema; do d $f; cat "$state/$f" 2>/dev/null; done
d deployed; cat "$state/deployed.json" 2>/dev/null
grep -q '"layout"' "$state/deployed.json" 2>/dev/null || {{
  d env; cat "{root}$config"/services/*/.env 2>/dev/null | grep -E '^(BIND_ADDRESS|SERVICE_UID|[A-Z]+_PORT)='
  d owner; stat -c %U "{root}$data"/users/* 2>/dev/null | head -n 1
}}
{manifest}
:
"""


def documents(output: str) -> dict[str, str]:
    """The documents from what `script` printed, among whatever else there is; those that are missing on the host are missing."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in output.splitlines():
        if line.startswith(SECTION):
            current = found.setdefault(line.removeprefix(PREFIX), []) if line.startswith(PREFIX) else []
        else:
            current.append(line)
    texts = {name: "\n".join(lines).strip() for name, lines in found.items()}
    return {name: text for name, text in texts.items() if text}


def parse(texts: Documents) -> Recorded:
    """What the documents say, after `migrate`. Of a later schema only schema, release, instance, fingerprint, roots and place are read."""
    schemas = _schemas(texts)
    if not schemas:
        return Recorded()
    known = Recorded(
        schema=max(schemas) if max(schemas) > SCHEMA else min(schemas),
        release=_release(texts),
        instance=texts.get("instance") or str(_json(texts, "anchor").get("instance", "")),
        fingerprint=texts.get("credentials", ""),
        roots=_roots(texts),
        place=texts.get("place", ""),
    )
    if known.schema > SCHEMA:
        return known
    return _details(known, migrate(texts))


def _details(known: Recorded, texts: Documents) -> Recorded:
    """The same with what the documents of this schema say beside."""
    deployed, manifest = _json(texts, "deployed"), _json(texts, "manifest")
    layout = deployed.get("layout", {})
    return Recorded(
        **{name: getattr(known, name) for name in ("schema", "release", "instance", "fingerprint", "roots", "place")},
        service_user=layout.get("service_user", ""),
        service_uid=layout.get("service_uid"),
        bind_address=layout.get("bind_address", ""),
        services={
            name: Service(each["container"], each["config"], each.get("port"))
            for name, each in deployed.get("services", {}).items()
        },
        created=_sets(manifest.get("created", {})),
        found=_sets(manifest.get("found", {})),
        wrote=_sets(manifest.get("wrote", {})),
        deployed=deployed,
        damaged=tuple(
            name for name in ("anchor", "deployed", "manifest") if texts.get(name) and not _json(texts, name)
        ),
    )


def _sets(names: Mapping[str, list[str]]) -> dict[str, frozenset[str]]:
    return {key: frozenset(values) for key, values in names.items()}


_Names = dict[str, list[str]]


class _Directories(TypedDict):
    config_root: str
    data_root: str
    models_dir: str
    outputs_dir: str


class _Anchor(_Directories):
    schema: int
    instance: str


class _Layout(_Directories):
    service_user: str
    service_uid: int | None
    bind_address: str


class _Service(TypedDict):
    container: str
    config: str
    port: NotRequired[int | None]


class _Deployed(TypedDict):
    schema: int
    services: dict[str, _Service]
    release: NotRequired[str]
    gpus: NotRequired[dict[str, str]]
    layout: NotRequired[_Layout]


class _Manifest(TypedDict):
    schema: int
    created: _Names
    release: NotRequired[str]
    found: NotRequired[_Names]
    wrote: NotRequired[_Names]
    layout: NotRequired[_Directories]


SHAPES: Mapping[str, TypeAdapter[Any]] = {
    "anchor": TypeAdapter(_Anchor),
    "deployed": TypeAdapter(_Deployed),
    "manifest": TypeAdapter(_Manifest),
}
"""What the documents of this schema and of earlier ones are; what else is in them stays."""


def _json(texts: Documents, name: str) -> dict[str, Any]:
    """A document; empty where it is missing or damaged. Of a later schema's nothing is asked but its number."""
    with suppress(ValueError, KeyError, TypeError):
        document = json.loads(texts[name])
        if int(document["schema"]) <= SCHEMA:
            SHAPES[name].validate_python(document, strict=True)
        return dict(document)
    return {}


def _schemas(texts: Documents) -> list[int]:
    """The schemas that the documents were written in; a deploy that was killed may have left several. Empty: no documents."""
    there = [name for name in (*SHAPES, "instance", "schema", "unit") if name in texts]
    told = [texts.get("schema"), *(_json(texts, name).get("schema") for name in SHAPES)]
    return [int(each) for each in map(str, told) if each.isdigit()] or [1 for _ in there[:1]]


def _release(texts: Documents) -> str:
    """The release that wrote the latest schema among the documents."""
    writers = [each for each in (_json(texts, "deployed"), _json(texts, "manifest")) if "release" in each]
    return str(max(writers, key=lambda each: int(each.get("schema", 0)))["release"]) if writers else ""


def _roots(texts: Documents) -> Roots | None:
    """From the anchor, else as of the last deploy, else as an uninstall that kept the data left it, else from the unit that
    names store and state, else where the state lies. None where nothing of all that is there.
    """
    places = (_json(texts, "anchor"), _json(texts, "deployed").get("layout"), _json(texts, "manifest").get("layout"))
    for document in places:
        with suppress(KeyError, TypeError):
            return Roots(*(str(document[name]) for name in WHAT))  # type: ignore[index]
    unit = re.search(r"^RequiresMountsFor=(\S+) (/\S*)/state/weights$", texts.get("unit", ""), re.M)
    data = unit[2] if unit else texts.get("place", "").removesuffix("/state")
    models = unit[1] if unit else f"{data}/models"
    return Roots(texts.get("config", ""), data, models, f"{data}/outputs") if data else None


def migrate(texts: Documents) -> dict[str, str]:
    """The documents as this release would have written them. Those of this schema or of a later one stay as they are."""
    schemas, texts = _schemas(texts), dict(texts)
    if schemas and max(schemas) <= SCHEMA:
        for schema in range(min(schemas), SCHEMA):
            texts = MIGRATIONS[schema](texts)
    return texts


def _to_2(texts: Documents) -> dict[str, str]:
    """Schema 2 has an anchor, in deployed.json the layout and the ports, and in the manifest the group, which came with the user."""
    deployed, manifest = _json(texts, "deployed"), _json(texts, "manifest")
    directories = asdict(roots) if (roots := _roots(texts)) else {}
    migrated = {**texts, "schema": "2"}
    if directories:
        anchor = {"schema": 2, "instance": texts.get("instance", ""), **directories}
        migrated["anchor"] = json.dumps(anchor, indent=1) + "\n"
    if manifest:
        created = {"groups": manifest["created"].get("users", []), **manifest["created"]}
        migrated["manifest"] = json.dumps({**manifest, "schema": 2, "created": created}, indent=1) + "\n"
    if deployed and directories and "layout" not in deployed:
        rows = (line.partition("=") for line in texts.get("env", "").splitlines())
        values = {name: value.strip('"[]') for name, _, value in rows}
        deployed["services"] = {
            name: {**service, "port": int(values[port]) if (port := f"{name.upper()}_PORT") in values else None}
            for name, service in deployed["services"].items()
        }
        deployed["layout"] = {
            **directories,
            "service_user": texts.get("owner", ""),
            "service_uid": int(values["SERVICE_UID"]) if "SERVICE_UID" in values else None,
            "bind_address": values.get("BIND_ADDRESS", ""),
        }
        migrated["deployed"] = json.dumps({**deployed, "schema": 2}, indent=1) + "\n"
    return migrated


MIGRATIONS: Mapping[int, Callable[[Documents], dict[str, str]]] = {1: _to_2}
"""By schema, what makes the next one of it."""
