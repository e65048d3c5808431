"""Weights: fetched with resume, checked by sha256, published by rename. A file is never trusted because it exists."""

import shlex
from collections.abc import Iterator

from pyinfra.api import StringCommand, deploy, operation

from atelier.deployment import Deployment
from atelier.models import Weight


def _fetch_script(store: str, state: str, weight: Weight, urls: list[str], proxy: str | None) -> str:
    """Take what is there when its sha256 is right, else fetch from the first source that delivers the right bytes."""
    record_file = shlex.quote(f"{state}/weights/{weight.sha256}")
    final, part = f"{store}/{weight.store_path}", f"{store}/.incoming/{weight.sha256}.part"
    quoted = " ".join(shlex.quote(url) for url in urls)
    patience = "--connect-timeout 20 --speed-limit 1000 --speed-time 60 --retry 5 --retry-connrefused"
    curl = f"curl -fsSL {patience}" + (f" --proxy {shlex.quote(proxy)}" if proxy else "")
    return f"""
set -u
final={shlex.quote(final)} part={shlex.quote(part)} wanted={weight.sha256} bytes={weight.bytes}
sum() {{ sha256sum <"$1" | cut -d' ' -f1; }}
publish() {{ chmod 0444 "$1" && chown root:root "$1" && sync "$1" && {{ [ "$1" = "$final" ] || mv -fT "$1" "$final"; }} && record; }}
record() {{ mkdir -p {shlex.quote(state)}/weights && stat -c '%s %Y %i' "$final" >{record_file}; }}
mkdir -p {shlex.quote(store)}/.incoming
if [ -f "$final" ]; then
  if [ "$(stat -c %s "$final")" = "$bytes" ] && [ "$(sum "$final")" = "$wanted" ]; then publish "$final"; exit 0; fi
  mv "$final" "$final.wrong-$(date +%Y%m%dT%H%M%SZ)"
  echo "{weight.store_path}: another file had this name; it was set aside as $final.wrong-*"
fi
found=
# The bytes so far, for a person who watches.
( while sleep 2 >/dev/null 2>&1 8>&-; do
    [ -f "$part" ] && echo "$(($(stat -c %s "$part" 2>/dev/null || echo 0) / 1000000)) of $((bytes / 1000000)) MB"
  done ) &
watch=$!; trap 'kill $watch' EXIT
for url in {quoted}; do
  if [ -f "$part" ] && [ "$(stat -c %s "$part")" -ge "$bytes" ]; then [ "$(sum "$part")" = "$wanted" ] || rm -f "$part"; fi
  if [ ! -f "$part" ] || [ "$(stat -c %s "$part")" -lt "$bytes" ]; then
    case $url in
      file://*) cp --sparse=always -- "${{url#file://}}" "$part" ;;  # holes stay holes
      # A source without ranges refuses to continue a part: then it is begun again.
      *) {curl} -C - -o "$part" "$url" || {{ rm -f "$part"; {curl} -o "$part" "$url"; }} ;;
    esac || {{ echo "{weight.name}: $url did not deliver" >&2; continue; }}
  fi
  found=$(sum "$part")
  if [ "$found" = "$wanted" ]; then publish "$part"; exit 0; fi
  echo "{weight.name}: $url delivered sha256 $found, expected $wanted" >&2
  rm -f "$part"
done
exit 1
"""


@operation()
def _fetched(deployment: Deployment, weight: Weight) -> Iterator[StringCommand]:
    settings = deployment.settings
    urls = weight.urls(settings.models.mirrors)
    yield StringCommand(
        _fetch_script(f"{settings.data_root}/models", settings.state_dir(), weight, urls, settings.proxy)
    )


@deploy("Weights")
def weights(deployment: Deployment) -> None:
    """Every weight of the host's sets that is not known good, in the store that both applications read."""
    for weight in deployment.missing_weights():
        _fetched(name=f"Bring {weight.name}, {weight.bytes / 1e9:.1f} GB", deployment=deployment, weight=weight)
