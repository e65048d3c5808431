"""What the lists of sabotages are written with."""

import shlex

from atelier.sabotage import Guest as Guest
from atelier.sabotage import Sabotage as Sabotage


def patched(container: str, path: str, edit: str) -> str:
    """A script that changes a file of a container and restarts it, so that no mount and no image betrays the change.

    container: `"$COMFYUI"`, `"$FORGE"` or `"$GATEWAY"`, quotes included. path: the file in the container.
    edit: shell commands that change the file named by `$FILE`, such as `sed -i 's/a/b/' "$FILE"`; what changes nothing
    fails. The undo is `restored`.
    """
    return f"""
FILE=$(root_of {container}){shlex.quote(path)}
before=$(sha256sum <"$FILE")
{edit}
[ "$before" != "$(sha256sum <"$FILE")" ] || {{ echo "the edit changed nothing in $FILE" >&2; exit 1; }}
docker restart {container} >/dev/null
"""


def restored(container: str) -> str:
    """A script that makes a container anew from its compose file and its image."""
    return f"recreate {container}\n"
