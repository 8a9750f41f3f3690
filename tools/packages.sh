#!/usr/bin/env bash
# packages.sh [--not-started] NAME… : installs those Debian packages that are missing. Needs root.
# With --not-started, what they bring as services of the machine is neither started now nor at the next boot.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

started=true
if [ "${1:-}" = --not-started ]; then
    started=false
    shift
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    say "system packages: this is no Debian; see to it that these are there: $*"
    exit 0
fi

missing=()
for package in "$@"; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
    say "system packages: all there"
    exit 0
fi

policy=/usr/sbin/policy-rc.d
let_lie() {
    rm -f "$policy"
    command -v systemctl >/dev/null || return 0
    dpkg-query -L "${missing[@]}" 2>/dev/null | sed -n 's|^\(/usr\)\?/lib/systemd/system/\([^@]*\.service\)$|\2|p' |
        xargs -r systemctl disable >/dev/null 2>&1 || true
}
if [ "$started" = false ] && [ ! -e "$policy" ]; then
    trap let_lie EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >&2; }

say "system packages: installing ${missing[*]}"
# apt-cache knows a package only once lists were fetched; the lists may also be too old to be of use.
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
    say "system packages: fetching apt's lists first"
    apt update
elif apt install -y --no-install-recommends "${missing[@]}"; then
    exit 0
else
    say "system packages: apt's lists may be old; fetching them"
    apt update
fi
apt install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install ${missing[*]}: see its message above; check the network and /etc/apt/sources.list"
