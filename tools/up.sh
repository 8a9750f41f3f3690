#!/usr/bin/env bash
# up.sh : installs what Fairwater needs on this machine and starts it. REPO is the first workspace's git URL.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

if is_root; then
    # shellcheck disable=SC2086
    "$checkout/tools/packages.sh" $packages_up
else
    say "not root: nothing is installed on the system, and workspaces run as plain processes of yours."
    say "          They are NOT isolated: they see your files, your processes and your network, and no limit"
    say "          on CPU, memory, processes or disk holds them. Start only repositories that you trust."
fi
environment=$("$checkout/tools/environment.sh" run)
if is_root; then
    "$checkout/tools/init.sh"
    mkdir -p /usr/local/bin
    ln -sfn "$environment/bin/fairwater" /usr/local/bin/fairwater
    say "command: /usr/local/bin/fairwater"
else
    say "command: $environment/bin/fairwater"
fi

repo=${REPO:-}
if [ -d "$repo" ]; then
    repo=$(cd "$repo" && pwd)
elif [ -z "$repo" ]; then
    if [ -e "$checkout/.git" ]; then
        repo=$checkout
    else
        say "no first workspace: $checkout is not a git checkout; name a repository with make up REPO=https://…"
    fi
fi
say "starting: fairwater up${repo:+ $repo}"
cd /
exec "$environment/bin/fairwater" up ${repo:+"$repo"}
