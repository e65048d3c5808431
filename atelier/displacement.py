"""Containers that step aside for ours, come back when ours fail, and go when ours have passed: shell, and what it prints. Pure.

A container is spoken of by its id, which nobody gives to another one, so that each script may run again after a kill
anywhere. Aside is a container that is stopped, does not start by itself and is called `<name>.previous`; its networks, its
volumes and its own files stay as they are.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from atelier.errors import Finding
from atelier.gpu.facts import STRICT

SUFFIX = ".previous"
STOP = 10
"""Seconds that a container has to end by itself."""
START = 20
"""Seconds within which a container that came back has to be running."""


@dataclass(frozen=True)
class Displaced:
    """A container as it was before it stepped aside: all that brings it back."""

    __pydantic_config__ = STRICT
    id: str
    name: str
    restart: str = "no"
    """Its restart policy, as `docker update --restart` takes it."""
    running: bool = True
    ours: bool = False
    why: str = ""
    """Why it steps aside, for people."""
    service: str = ""
    """`comfyui`, `forge`, `gateway`, or empty where that is not known."""
    ports: tuple[int, ...] = ()
    """Of the host, on which it answers."""
    networks: tuple[str, ...] = ()
    """Those that go with it where nobody else is in them."""
    keeps: str = ""
    """What is in it alone, for people: then it stays as `<name>.previous` whoever says yes."""

    @property
    def aside(self) -> str:
        """Its name while it is aside."""
        return f"{self.name}{SUFFIX}"


@dataclass(frozen=True)
class Outcome:
    """What a script came to, by id. gone: there was no such container any more."""

    done: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    """Those that were removed."""

    def complete(self, displaced: Iterable[Displaced]) -> bool:
        """Whether everything was done for all of them."""
        return all(one.id in self.done for one in displaced)


def aside_script(displaced: Iterable[Displaced]) -> str:
    """Shell that has them step aside, all at once; what is aside already stays so."""
    return _script(_ASIDE, displaced)


def back_script(displaced: Iterable[Displaced]) -> str:
    """Shell that undoes it: names, restart policies, and those that were running run again. Their names must be free."""
    return _script(_BACK, displaced)


def remove_script(displaced: Iterable[Displaced]) -> str:
    """Shell that removes those that are aside, except what keeps something, and their networks when those are empty."""
    going = [one for one in displaced if not one.keeps]
    networks = sorted({network for one in going for network in one.networks})
    return _script(_REMOVE, going) + "".join(f"remove_network {shlex.quote(network)}\n" for network in networks)


def _script(step: str, displaced: Iterable[Displaced]) -> str:
    calls = "".join(
        f"{shlex.join(['step', one.id, one.name, one.aside, one.restart, 'yes' if one.running else 'no'])} &\n"
        for one in displaced
    )
    return f"{_COMMON}{step}{calls}wait\n"


_COMMON = r"""
export LC_ALL=C
say() { printf '%s\t%s\t%s\n' "$1" "$2" "$3"; }
if ! why=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null); then say dead - "$(echo "$why" | tail -n 1)"; exit 1; fi
# What it prints in one line where it fails, which is nothing where it does not.
complaint() { e=$("$@" 2>&1 >/dev/null) && return 0; e=$(echo "$e" | tail -n 1); echo "${e:-$1 $2 failed}"; return 1; }
of() { docker inspect --type container --format "$2" "$1" 2>/dev/null; }
fails() { say failed "$1" "$2"; }
"""
_ASIDE = rf"""
step() {{
  now=$(of "$1" '{{{{.Name}}}}') || {{ say gone "$1" "$2"; return; }}
  other=$(of "$3" '{{{{.Id}}}}')
  [ -z "$other" ] || [ "$other" = "$1" ] || {{ fails "$1" "there is another container called $3"; return; }}
  [ "$(of "$1" '{{{{.HostConfig.AutoRemove}}}}')" != true ] || {{ fails "$1" "it was started with --rm, and would be gone"; return; }}
  why=$(complaint docker update --restart no "$1") || {{ fails "$1" "$why"; return; }}
  why=$(complaint docker stop -t {STOP} "$1") || {{ fails "$1" "$why"; return; }}
  [ "$now" = "/$3" ] || why=$(complaint docker rename "$1" "$3") || {{ fails "$1" "$why"; return; }}
  say done "$1" "$3"
}}
"""
_BACK = rf"""
step() {{
  now=$(of "$1" '{{{{.Name}}}}') || {{ say gone "$1" "$2"; return; }}
  [ "$now" = "/$2" ] || why=$(complaint docker rename "$1" "$2") || {{ fails "$1" "$why"; return; }}
  if [ "$5" = yes ]; then
    why=$(complaint docker start "$1") || {{ fails "$1" "$why"; return; }}
    n=0; until [ "$(of "$1" '{{{{.State.Running}}}} {{{{.State.Restarting}}}}')" = 'true false' ]; do
      n=$((n + 1)); [ "$n" -le {START} ] || {{ fails "$1" "it ends again at once: docker logs $2"; return; }}; sleep 1
    done
  fi
  why=$(complaint docker update --restart "$4" "$1") || {{ fails "$1" "$why"; return; }}
  say done "$1" "$2"
}}
"""
_REMOVE = r"""
step() {
  now=$(of "$1" '{{.Name}}') || { say gone "$1" "$2"; return; }
  [ "$now" = "/$3" ] || { fails "$1" "it is not called $3 any more"; return; }
  # Without force, so that one that somebody started again stays; without its volumes, which hold data.
  why=$(complaint docker rm "$1") || { fails "$1" "$why"; return; }
  say done "$1" "$3"
}
remove_network() {
  case $(docker network inspect --format '{{range $k, $v := .Labels}}{{$k}} {{end}}' "$1" 2>/dev/null) in
    *com.docker.compose.project*|*atelier*) ;; *) return ;;
  esac
  # One that has stopped is not among those that the network names, and could not start without it.
  [ -z "$(docker ps -aq --filter "network=$1")" ] && docker network rm "$1" >/dev/null 2>&1 && say network - "$1"
}
"""


def parse(output: str) -> Outcome:
    """What a script printed."""
    rows = [line.split("\t", 2) for line in output.splitlines() if line.count("\t") >= 2]
    by_word = {
        word: {one: text for said, one, text in rows if said == word} for word in ("done", "gone", "failed", "dead")
    }
    return Outcome(
        done=frozenset(by_word["done"]),
        gone=frozenset(by_word["gone"]),
        failed={**by_word["failed"], **by_word["dead"]},
        networks=tuple(text for said, _, text in rows if said == "network"),
    )


def taken(displaced: Iterable[Displaced], ids: Mapping[str, str]) -> list[Finding]:
    """Why they cannot step aside: another container has the name. ids: of all containers on the host, by name."""
    return [
        Finding(
            f"{one.name} is to step aside as {one.aside}, and there is another container of that name already",
            f"rename that one (docker rename {one.aside} NAME), or remove it where nobody needs it",
        )
        for one in displaced
        if ids.get(one.aside, one.id) != one.id
    ]
