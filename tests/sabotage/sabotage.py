"""What the lists of sabotages are written with."""

import shlex

from atelier.sabotage import Guest as Guest
from atelier.sabotage import Sabotage as Sabotage

COMFYUI, FORGE, GATEWAY = '"$COMFYUI"', '"$FORGE"', '"$GATEWAY"'
"""The containers, as scripts name them."""
DAEMON = "/etc/docker/daemon.json"


def changed(file: str, edit: str) -> str:
    """A script that runs shell commands on the file named by `$FILE`; what changes nothing fails."""
    return f"""
FILE={file}
before=$(sha256sum <"$FILE")
{edit}
[ "$before" != "$(sha256sum <"$FILE")" ] || {{ echo "the edit changed nothing in $FILE" >&2; exit 1; }}
"""


def patched(container: str, path: str, edit: str) -> str:
    """A script that changes a file of a container and restarts it, so that no mount and no image betrays the change.

    container: `"$COMFYUI"`, `"$FORGE"` or `"$GATEWAY"`, quotes included. path: the file in the container.
    edit: shell commands that change the file named by `$FILE`, such as `sed -i 's/a/b/' "$FILE"`. The undo is `restored`.
    """
    return changed(f"$(root_of {container}){shlex.quote(path)}", edit) + f"docker restart {container} >/dev/null\n"


def restored(container: str) -> str:
    """A script that makes a container anew from its compose file and its image."""
    return f"recreate {container}\n"


def edited(path: str, edit: str, restarts: str = "") -> str:
    """A script that changes a file of the host, and restarts a container for it. The undo is `given_back`.

    path: quotes included, as in `"$CONFIG/services/$GATEWAY/config/Caddyfile"`. edit: as for `patched`.
    """
    return f"keep {path}\n" + changed(path, edit) + (f"docker restart {restarts} >/dev/null\n" if restarts else "")


def given_back(path: str, restarts: str = "") -> str:
    """A script that puts a file of the host back as it was, and restarts a container for it."""
    return f"give_back {path}\n" + (f"docker restart {restarts} >/dev/null\n" if restarts else "")
