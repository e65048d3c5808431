#!/bin/sh
# How this host reaches the Debian archive, for Debian 12: debian-archive.sh DIRECTORY [settings]
#
# Writes DIRECTORY/apt.conf, the proxies and the like of the host's own apt, and unless only these `settings` are wanted
# DIRECTORY/sources.list, the Debian archive that the host's own apt is configured for.
set -eu
directory=$1 only=${2:-}
mkdir -p "$directory"
apt-config dump | grep -E '^Acquire::(http|https|ftp|Check|Retries)' >"$directory/apt.conf" ||
    [ $? -eq 1 ] # nothing of the kind is configured
[ "$only" != settings ] || exit 0

# The suite's own name decides, whatever release the host itself runs: trixie-security becomes bookworm-security.
apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
    sed -nE 's/^(\S+) [a-z]+((-security|-updates)?)$/deb \1 bookworm\2 main/p' | sort -u >"$directory/sources.list"
if ! grep -q ' bookworm main$' "$directory/sources.list"; then
    echo "atelier: apt on this host is configured for no Debian archive, which the base image is made from;" >&2
    echo "  -> set images.base to an image of Debian 12 in a registry, pinned by digest" >&2
    exit 1
fi
