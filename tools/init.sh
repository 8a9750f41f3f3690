#!/usr/bin/env bash
# init.sh : compiles the first process of every workspace, a small static program. Needs root.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

source=$checkout/src/fairwater/node/init/init.c
target=$prefix/libexec/fairwater-init
umask 022
wanted=$(cat "$(dirname "$source")"/*.[ch] | sha256sum | cut -d' ' -f1)
if [ -x "$target" ] && [ "$(cat "$target.stamp" 2>/dev/null)" = "$wanted" ]; then
    say "fairwater-init: $target is up to date"
    exit 0
fi
say "fairwater-init: compiling $target"
mkdir -p "${target%/*}"
# Moved into place: workspaces may be running the one that is there.
cc -O2 -static -std=c11 -Wall -Wextra -Werror -o "$target.new" "$source" ||
    die "fairwater-init could not be compiled: see the message above; gcc and libc6-dev are needed"
# Not readable: a process whose program cannot be read does not show its descriptors, not even to the sandbox's root.
chmod 0711 "$target.new"
mv -f "$target.new" "$target"
printf '%s\n' "$wanted" >"$target.stamp"
