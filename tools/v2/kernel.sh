#!/usr/bin/env bash
# kernel.sh : fetches Debian's cloud kernel into /opt/fairwater/v2, for the machine that the tests of cgroup v2 boot.
#
# Only its files: nothing is installed, and what this machine itself boots stays as it is. Needs root.
set -euo pipefail
# shellcheck source=../say.sh
. "$(dirname "$0")/../say.sh"

home=$prefix/v2
meta=linux-image-cloud-amd64
umask 022

if [ "$(uname -m)" != x86_64 ] || ! command -v apt-get >/dev/null; then
    say "kernel for the tests of cgroup v2: only on Debian on x86_64; they are skipped"
    exit 0
fi
image_of() { apt-cache depends --important "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ <]*\)$/\1/p' | head -n 1; }
image=$(image_of)
if [ -z "$image" ]; then
    apt-get -q -o Acquire::Retries=3 update >&2
    image=$(image_of)
    [ -n "$image" ] || die "apt knows no package $meta: see /etc/apt/sources.list"
fi
if [ -e "$home/$image/modules.ready" ]; then
    say "kernel for the tests of cgroup v2: $home/$image is there"
else
    say "kernel for the tests of cgroup v2: fetching $image into $home"
    mkdir -p "$home"
    aside=$(mktemp -d "$home/new.XXXXXX")
    trap 'rm -rf "$aside"' EXIT
    (cd "$aside" && apt-get -q -o Acquire::Retries=3 -o APT::Sandbox::User=root download "$image" >&2) ||
        die "$image could not be fetched: see apt's message above; 'apt-get update' may help"
    dpkg-deb -x "$aside"/*.deb "$aside/files"
    depmod --basedir "$aside/files" "${image#linux-image-}"
    touch "$aside/files/modules.ready"
    chmod 755 "$aside/files"
    rm -rf "${home:?}/$image"
    mv "$aside/files" "$home/$image"
fi
ln -sfn "$image" "$home/kernel"
