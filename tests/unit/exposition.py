"""A strict reader of Prometheus' text format, as much of it as a textfile collector may be given."""

import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Samples:
    """Every sample by name and labels. Raises ValueError for what a strict reader refuses, and for what is bad form."""
    found: Samples = {}
    told: dict[str, set[str]] = {}
    closed: set[str] = set()
    current = ""
    if not text.endswith("\n") or text.endswith("\n\n"):
        raise ValueError("the text does not end with one line break")
    for line in text.splitlines():
        if comment := re.fullmatch(r"# (HELP|TYPE) (\S+) (.+)", line):
            kind, name, rest = comment.groups()
            if name in closed or kind in told.setdefault(name, set()) or not NAME.fullmatch(name):
                raise ValueError(f"{kind} of {name} is told twice, too late, or of no name")
            if kind == "TYPE" and (rest not in ("gauge", "counter") or (rest == "counter") != name.endswith("_total")):
                raise ValueError(f"{name} is no {rest}")
            told[name].add(kind)
        else:
            sample = SAMPLE.fullmatch(line)
            if not sample:
                raise ValueError(f"no sample: {line}")
            name, labels, value = sample.groups()
            if told.get(name) != {"HELP", "TYPE"}:
                raise ValueError(f"{name} has no HELP or no TYPE before it")
            key = (name, tuple(sorted(_labels(labels or ""))))
            if key in found:
                raise ValueError(f"twice: {line}")
            found[key] = float(value)
        if current and name != current:
            closed.add(current)
        if name in closed:
            raise ValueError(f"{name} is told in two places")
        current = name
    return found


def _labels(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text):
        match = LABEL.match(text, at)
        if not match:
            raise ValueError(f"no labels: {text}")
        found.append((match[1], re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[2])))
        at = match.end()
    if len({name for name, _ in found}) != len(found):
        raise ValueError(f"a label twice: {text}")
    return found
