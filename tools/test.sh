#!/usr/bin/env bash
# test.sh all|unit|lint : checks and tests. `all` installs, as root, what they need.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

what=${1:?all, unit or lint}
kind=dev
if [ "$what" = all ]; then
    kind="test"
    if is_root; then
        # shellcheck disable=SC2086
        "$checkout/tools/packages.sh" $packages_up
        # shellcheck disable=SC2086
        "$checkout/tools/packages.sh" --not-started $packages_test
        "$checkout/tools/init.sh"
        "$checkout/tools/v2/kernel.sh"
    else
        say "not root: the tests that need it are skipped"
    fi
fi
environment=$("$checkout/tools/environment.sh" "$kind")
cd "$checkout"
unset PYTHONPATH PYTHONHOME
exec "$environment/bin/python" -P tools/checks.py "$what"
