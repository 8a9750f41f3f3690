"""The peers of a start: a bare OCI runtime on the same bundle and mounts, podman and docker on the same root."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fairwater.domain.workspaces.classes import STANDARD
from fairwater.node import linux
from fairwater.node.cgroups import Cgroups
from fairwater.node.host_image import HostImage
from fairwater.node.slots import Slots
from fairwater.ports.images import ImageRoot

FIRST_PROCESS = ["sh", "-c", "date +%s%N > /workspace/started"]
INSTANCE = 15


class _NoNetwork:
    """The namespace is there and given to the runtime; what is inside costs a runtime nothing."""

    def create(self, slot: int, netns: Path) -> str:
        return "192.0.2.1"

    def probe(self, slot: int, netns: Path) -> None: ...
    def prepare(self) -> None: ...
    def open(self, slot: int) -> None: ...
    def close(self, slot: int) -> None: ...
    def remove(self, slot: int) -> None: ...

    def nameservers(self) -> tuple[str, ...]:
        return ()


@contextmanager
def crun(init: Path, runtime: str = "crun") -> Iterator[Callable[[], float]]:
    """Seconds from `crun run` to the first process, its bundle the one of a workspace: user and network namespace,
    root overlay and limits made ahead, the same seccomp profile, `/workspace` a folder of a mounted volume."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fw-crun-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o711)
        image = asyncio.run(HostImage(folder / "images").prepare("host"))
        cgroups = Cgroups(f"fairwater-{INSTANCE}")
        slots = Slots(folder / "slots", INSTANCE, cgroups, _NoNetwork(), init, runtime, STANDARD)
        slots.prepare()
        stack.callback(slots.release)
        stack.callback(cgroups.shutdown)
        slot = slots.park(0, image)
        stack.callback(slots.clear, 0)
        volume = folder / "volume"
        volume.mkdir()
        os.chown(volume, slots.first_id(slot), slots.first_id(slot))
        bundle = slot.folder / "bundle"
        config = json.loads((bundle / "config.json").read_text())
        config["process"]["args"] = FIRST_PROCESS
        config["linux"]["cgroupsPath"] = cgroups.path("peer")
        config["mounts"].append(
            {"destination": "/workspace", "type": "bind", "source": str(volume), "options": ["bind", "rw"]}
        )
        (bundle / "config.json").write_text(json.dumps(config))
        command = [
            runtime,
            "--root",
            str(folder / "state"),
            "--cgroup-manager",
            "cgroupfs",
            "run",
            "--bundle",
            str(bundle),
            "peer",
        ]
        if cgroups.v2_to_hide:
            # As crun needs it on a hybrid layout; made once, ahead, so that it costs the peer nothing.
            holder = stack.enter_context(linux.held_namespaces("--mount", "--propagation", "private"))
            subprocess.run(["nsenter", "-t", str(holder), "-m", "umount", str(cgroups.v2_to_hide)], check=True)
            command = ["nsenter", "-t", str(holder), "-m", *command]

        def run() -> float:
            began = time.time()
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
            return int((volume / "started").read_text()) / 1e9 - began

        yield run


@contextmanager
def podman(image: ImageRoot, *network: str) -> Iterator[Callable[[], float]]:
    """`network`: options of `podman run`; none for its default, a bridge with NAT, as a workspace has a network too.

    It runs in a network namespace of its own, so that the machine's rules stay as they are.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fw-podman-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "volume").mkdir()
        base = [
            "podman",
            "--root",
            str(folder / "root"),
            "--runroot",
            str(folder / "run"),
            "--cgroup-manager",
            "cgroupfs",
        ]
        stack.callback(subprocess.run, [*base, "system", "reset", "--force"], capture_output=True)
        limits = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", *network]
        volumes = ["--volume", "/usr:/usr:ro", "--volume", f"{folder / 'volume'}:/workspace"]
        command = [*base, "run", "--rm", *limits, *volumes, "--rootfs", f"{image.layers[0]}:O", *FIRST_PROCESS]
        holder = stack.enter_context(linux.held_namespaces("--mount", "--net", "--propagation", "private"))
        enter = ["nsenter", "-t", str(holder), "-m", "-n"]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
        hide = Cgroups("unused").v2_to_hide
        if hide:
            subprocess.run([*enter, "umount", str(hide)], check=True)
        command = [*enter, *command]
        stack.callback(subprocess.run, [*enter, *base, "system", "reset", "--force"], capture_output=True)
        yield lambda: _timed(command, folder / "volume/started")


@contextmanager
def docker(image: ImageRoot) -> Iterator[Callable[[], float]]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fw-docker-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "volume").mkdir()
        socket = folder / "docker.sock"
        holder = stack.enter_context(linux.held_namespaces("--mount", "--net", "--propagation", "private"))
        daemon = subprocess.Popen(
            ["nsenter", "-t", str(holder), "-m", "-n", "/usr/sbin/dockerd", "--host", f"unix://{socket}",
             "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"),
             "--iptables=false", "--bridge=none"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        client = ["/usr/bin/docker", "--host", f"unix://{socket}"]
        deadline = time.monotonic() + 30
        while subprocess.run([*client, "info"], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("dockerd did not come up")
            time.sleep(0.1)
        archive = subprocess.run(["tar", "-C", str(image.layers[0]), "-c", "."], check=True, capture_output=True).stdout
        subprocess.run([*client, "import", "-", "peer"], input=archive, check=True, capture_output=True)
        volumes = ["--volume", "/usr:/usr:ro", "--volume", f"{folder / 'volume'}:/workspace"]
        # Its bridge would take over the machine's rules; without a network it is the faster peer.
        command = [*client, "run", "--rm", "--network", "none", *volumes, "peer", *FIRST_PROCESS]
        yield lambda: _timed(command, folder / "volume/started")


def _timed(command: list[str], started: Path) -> float:
    began = time.time()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return int(started.read_text()) / 1e9 - began
