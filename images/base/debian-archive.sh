#!/bin/sh
# How this host reaches the Debian archive, for Debian 12: debian-archive.sh DIRECTORY [MIRROR]
#
# Writes DIRECTORY/sources.list and DIRECTORY/apt.conf (proxies and the like). The archive is the one that the host's own
# apt is configured for; a host whose apt knows no Debian archive (Ubuntu) needs MIRROR, the address of one.
set -eu
directory=$1 mirror=${2:-}
mkdir -p "$directory"

if [ -n "$mirror" ]; then
    printf 'deb %s %s main\n' "$mirror" bookworm "$mirror" bookworm-updates "${mirror%/}-security" bookworm-security
else
    # The suite's own name decides, whatever release the host itself runs: trixie-security becomes bookworm-security.
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' \
        'Created-By: Packages' 'Origin: Debian' 'Component: main' |
        sed -nE 's/^(\S+) [a-z]+((-security|-updates)?)$/deb \1 bookworm\2 main/p' | sort -u
fi >"$directory/sources.list"
if ! grep -q ' bookworm main$' "$directory/sources.list"; then
    echo "atelier: apt on this host is configured for no Debian archive, which the base image is made from;" >&2
    echo "  -> set images.debian_mirror to one, or images.base to an image of a registry, pinned by digest" >&2
    exit 1
fi
apt-config dump | grep -E '^Acquire::(http|https|ftp|Check|Retries)' >"$directory/apt.conf" || true
