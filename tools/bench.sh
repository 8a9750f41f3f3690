#!/usr/bin/env bash
# bench.sh [NAME] : runs bench/NAME.py (dashes for underscores), or every benchmark. Fails where one of them does.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

# What is meant to be run has a main part; the rest are modules that benchmarks share.
mapfile -t all < <(grep -l '^if __name__ == "__main__":' "$checkout"/bench/*.py 2>/dev/null || true)
if [ $# -gt 0 ]; then
    chosen=("$checkout/bench/${1//-/_}.py")
    if [ ! -f "${chosen[0]}" ]; then
        names=$(for file in "${all[@]}"; do basename "${file//_/-}" .py; done | tr '\n' ' ')
        die "there is no benchmark '$1'; there are: ${names:-none}"
    fi
else
    chosen=("${all[@]}")
    [ ${#chosen[@]} -gt 0 ] || die "there is no benchmark in $checkout/bench"
fi

if is_root; then
    # shellcheck disable=SC2086
    "$checkout/tools/packages.sh" $packages_up
    # shellcheck disable=SC2086
    "$checkout/tools/packages.sh" --not-started $packages_test $packages_bench
    "$checkout/tools/init.sh"
fi
environment=$("$checkout/tools/environment.sh" run)
cd "$checkout"
status=0
for file in "${chosen[@]}"; do
    say "bench/$(basename "$file")"
    "$environment/bin/python" "$file" || status=1
done
exit $status
