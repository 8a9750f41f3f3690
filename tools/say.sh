# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts. What they tell a person goes to standard error: standard output may be JSON.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
prefix=/opt/fairwater

# What Fairwater needs of a Debian machine to run isolated workspaces, and what its tests need on top.
packages_up="python3 python3-venv crun skopeo zstd btrfs-progs git git-lfs openssh-client ca-certificates libnftables1 nftables
    iproute2 util-linux gcc libc6-dev make procps kmod"
packages_test="busybox-static debootstrap docker-registry e2fsprogs musl-tools openssh-server postgresql-15 qemu-system-common qemu-system-x86 runc tar umoci"
# The peers that benchmarks stand beside.
packages_bench="podman netavark aardvark-dns docker.io iptables"

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }
