#!/usr/bin/env bash
# environment.sh run|test|dev : brings a locked Python environment up to date and prints its folder.
#
#   run    what `fairwater up` runs from: /opt/fairwater/env as root, else as dev
#   test   the same with the development tools: /opt/fairwater/test as root, else as dev
#   dev    .venv in the checkout, with the development tools, the package editable
#
# Below /opt/fairwater nothing points back into the checkout, so the unprivileged server can read all of it.
# A stamp of what went in makes the second time quick.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

uv_version=0.13.9
kind=${1:?run, test or dev}
is_root || kind=dev

umask 022
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME
# uv and pip bring certificates of their own; a company's are found only in the system's bundle.
bundle=/etc/ssl/certs/ca-certificates.crt
if [ -f "$bundle" ]; then
    export SSL_CERT_FILE=${SSL_CERT_FILE:-$bundle} PIP_CERT=${PIP_CERT:-$bundle}
fi

find_python() {
    local candidate
    for candidate in /usr/bin/python3 "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python of version 3.11 or later: install python3 and python3-venv"
}

# The files that decide what is in the environment, by content.
stamp() {
    {
        printf '%s\n' "$uv_version" "$kind" "$("$python" --version)"
        cd "$checkout"
        {
            printf '%s\0' pyproject.toml uv.lock
            [ "$kind" = dev ] || find src -type f ! -name '*.pyc' -print0 | sort -z
        } | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1
}

install_uv() {
    [ "$("$uv" --version 2>/dev/null | cut -d' ' -f2)" = "$uv_version" ] && return
    say "uv: installing version $uv_version into $uv_home"
    rm -rf "$uv_home"
    "$python" -m venv "$uv_home" >&2 || die "$python cannot make environments: install python3-venv (apt-get install python3-venv)"
    "$uv_home/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version" >&2 ||
        die "uv could not be installed from PyPI: see pip's message above; check the network, HTTPS_PROXY and PIP_INDEX_URL"
}

python=$(find_python)
case $kind in
    run) environment=$prefix/env options=(--no-dev --no-editable --compile-bytecode) ;;
    test) environment=$prefix/test options=(--group dev --no-editable --compile-bytecode) ;;
    dev) environment=$checkout/.venv options=(--group dev) ;;
    *) die "environment.sh: '$kind' is none of run, test, dev" ;;
esac
if is_root; then
    mkdir -p "$prefix"
    uv_home=$prefix/uv
    export UV_CACHE_DIR=$prefix/cache
else
    uv_home=$checkout/.uv
fi
uv=$uv_home/bin/uv

# Two at once would trip over each other.
exec 9>"${uv_home%/*}/.fairwater-install.lock"
if command -v flock >/dev/null; then
    flock -w 600 9 || die "another installation has held ${uv_home%/*}/.fairwater-install.lock for ten minutes: end it first"
fi

wanted=$(stamp)
if [ "$(cat "$environment/.stamp" 2>/dev/null)" = "$wanted" ] && "$environment/bin/python" -c '' 2>/dev/null; then
    say "Python environment: $environment is up to date"
else
    install_uv
    say "Python environment: installing what uv.lock lists into $environment"
    rm -f "$environment/.stamp"
    UV_PROJECT_ENVIRONMENT=$environment UV_PYTHON=$python UV_PYTHON_DOWNLOADS=never \
        "$uv" sync --project "$checkout" --frozen "${options[@]}" --reinstall-package fairwater >&2 9>&- ||
        die "the Python environment could not be made: see uv's message above"
    printf '%s\n' "$wanted" >"$environment/.stamp"
fi
printf '%s\n' "$environment"
