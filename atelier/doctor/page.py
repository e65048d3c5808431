"""`python -m atelier.doctor.page` writes docs/troubleshooting.md from the signatures."""

from atelier.doctor.signatures import TABLE, Signature
from atelier.paths import PROJECT
from atelier.settings import Settings

PAGE = PROJECT / "docs" / "troubleshooting.md"
HEAD = """# Troubleshooting

<!-- Written by `python -m atelier.doctor.page` from atelier/doctor/signatures.py. -->

```sh
make doctor HOST=user@gpu-host             # what is wrong, why, and what to type; exit 0 when nothing is wrong, else 1
make doctor HOST=user@gpu-host BUNDLE=1    # the same, and a support bundle in any case
```

Doctor asks the host for its logs and states, and one with a GPU a second time, for the facts that a deploy decides by. It changes
nothing there, and compares what it heard with the failures below. It tells what is present:
trouble from before the last boot, or from before the containers came up again, is over; a failed request counts for a day.
Each finding quotes the line that shows it, with its source and time. A source that could not be read is named and not taken for clean.

When something is unhealthy and none of these failures shows, it writes a **support bundle**,
`reports/<host>/support-<UTC>.tar.gz`: everything it read, the settings, facts and plan of the GPU, its own report. Passwords, tokens,
hashes, keys, cookies, credentials in URLs, e-mail and public IP addresses are removed from it; names of hosts, users and files stay.
Look at it before you send it.

Other commands: `make status` (what runs), `make logs SERVICE=`, `make preflight` (what would stop a deploy), `make verify` (the proof).

## What doctor recognises

| id | what | why | first thing to type |
|---|---|---|---|
"""


def render() -> str:
    """The page."""
    return HEAD + "".join(map(_row, TABLE))


def _row(signature: Signature) -> str:
    step = signature.steps[0]
    where = "on the host: " if step.where == "host" else ""
    command = step.typed("", Settings()).replace("   # ", "`, ", 1) + ("" if "   # " in step.command else "`")
    cells = (f"`{signature.id}`", signature.title, signature.why, f"{where}`{command}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
