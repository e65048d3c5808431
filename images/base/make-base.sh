#!/bin/sh
# Make the base image, Debian 12 with Python 3.11, on this host: make-base.sh TAG USER UID
#
# From Debian's signed archive with mmdebstrap, so that no image registry is needed. What of the host's configuration was
# used (sources, proxies) is left out of the image.
set -eu
tag=$1 user=$2 uid=$3
here=$(cd "$(dirname "$0")" && pwd)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for tool in mmdebstrap docker; do
    command -v "$tool" >/dev/null || { echo "atelier: $tool is missing on this host" >&2; exit 1; }
done
[ -e "$keyring" ] || { echo "atelier: $keyring is missing; install debian-archive-keyring" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sh "$here/debian-archive.sh" "$work"

# Into a file and not through a pipe: an import must not succeed with half an archive.
mmdebstrap --quiet --variant=minbase --mode=root --format=tar --keyring="$keyring" \
    --include="$(paste -sd, "$here/packages.txt")" --aptopt="$work/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="chroot \"\$1\" groupadd --gid $uid $user" \
    --customize-hook="chroot \"\$1\" useradd --uid $uid --gid $uid --home-dir /tmp --shell /usr/sbin/nologin $user" \
    --customize-hook='rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/apt.conf.d/99mmdebstrap' \
    --customize-hook='rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/machine-id' \
    bookworm "$work/rootfs.tar" "$work/sources.list"
docker import --change 'ENV LANG=C.UTF-8' "$work/rootfs.tar" "$tag"
