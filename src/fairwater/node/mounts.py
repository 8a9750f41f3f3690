"""The agent's own view of the machine's mounts, kept across its restarts.

Whatever else starts on a machine with a mount namespace of its own (a service of systemd's, a container) takes a copy
of all mounts that it finds, and holds on to them: a volume could not be released while it runs. So volumes and
sandboxes are mounted where nobody else can copy them: in a namespace of the agent's, which a bind mount keeps alive.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from fairwater.node import linux


class PrivateMounts:
    """The namespace kept at `folder`/mnt. To be made while the process has one thread: others would stay outside.

    What the machine mounts later is seen inside; what is mounted inside is seen nowhere else.
    """

    def __init__(self, folder: Path, hide: Path | None) -> None:
        """Enters the namespace, or makes it; `hide` is unmounted in it (`Cgroups.v2_to_hide`)."""
        self._folder = folder
        self._outside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        folder.mkdir(parents=True, exist_ok=True)
        pin = folder / "mnt"
        if linux.is_mount(pin):
            with linux.opened(pin) as namespace:
                linux.unshare(linux.CLONE_FS)
                linux.setns(namespace, linux.CLONE_NEWNS)
            return
        if not linux.is_mount(folder):
            linux.mount(folder, folder, "none", linux.MS_BIND)
        linux.mount("none", folder, "none", linux.MS_PRIVATE)  # a namespace can be bound only where nothing spreads
        pin.touch(mode=0o600)
        self._enter_new(pin)
        if hide is not None:
            linux.umount(hide)

    def _enter_new(self, pin: Path) -> None:
        """Makes the namespace, and keeps it at `pin`.

        The kernel refuses to bind a namespace whose number is below that of the one it is bound in. Since Linux 6.18
        numbers are dealt to each processor in batches, so that a new one may be the smaller; on the processor on which
        the outer one was made, it is not.
        """
        inside = f"/proc/{os.getpid()}/ns/mnt"
        processors = os.sched_getaffinity(0)
        try:
            for processor in (None, *sorted(processors)):
                if processor is not None:
                    os.sched_setaffinity(0, {processor})
                linux.unshare(linux.CLONE_NEWNS)
                linux.mount("none", "/", "none", linux.MS_REC | linux.MS_SLAVE)
                try:
                    linux.in_namespaces(lambda: linux.mount(inside, pin, "none", linux.MS_BIND), mount_ns=self._outside)
                    return
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            raise OSError(errno.EINVAL, f"the agent's mount namespace cannot be kept at {pin}")
        finally:
            os.sched_setaffinity(0, processors)

    def forget(self) -> None:
        """Lets the namespace go with its last process."""

        def unpin() -> None:
            for path in (self._folder / "mnt", self._folder):
                if linux.is_mount(path):
                    linux.umount(path, linux.MNT_DETACH)

        self.outside(unpin)

    def outside(self, work: Callable[[], None]) -> None:
        """Does `work` among the machine's own mounts."""
        linux.in_namespaces(work, mount_ns=self._outside)
