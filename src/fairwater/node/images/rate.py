"""Holds what is written to the images' disk to a rate, so that bringing in an image slows nobody.

Only pulls write to that device, so the ceiling is the device's own. Version 1 holds buffered writes of a loop device in
the root group, with its dirty pages capped; version 2 has no limit in the root group, and holds the pull's own group.
What was written is read back.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.domain.units import MIB

_DIRTY_MAX = 8 * MIB


class WriteCeiling:
    """`bytes_per_s` None lifts it. `cgroup` is where the groups are mounted."""

    def __init__(
        self, bytes_per_s: int | None, cgroup: Path = Path("/sys/fs/cgroup"), sys: Path = Path("/sys")
    ) -> None:
        self._rate = bytes_per_s
        self._cgroup = cgroup
        self._sys = sys

    def hold_device(self, device: str) -> None:
        """Version 1: once for the device, whoever writes to it. Elsewhere only its dirty pages are capped.

        Raises:
            Temporary: `limit_not_applied`.
        """
        number = self._number(device)
        self._cap_dirty(number)
        for folder in (self._cgroup / "blkio", self._cgroup / "blkio,io", self._cgroup):
            control = folder / "blkio.throttle.write_bps_device"
            if control.exists():
                self._write(control, f"{number} {self._rate or 0}")
                shown = dict(line.split() for line in control.read_text().splitlines())
                if int(shown.get(number, "0")) != (self._rate or 0):
                    raise _not_applied(control, number)
                return

    def lift_device(self, device: str) -> None:
        """Before the device goes: its number comes back as somebody else's, and the ceiling would be theirs."""
        if Path(device).exists():
            WriteCeiling(None, self._cgroup, self._sys).hold_device(device)

    def hold_group(self, device: str, group: Path) -> None:
        """Version 2: the group of a pull, a path such as `/fairwater-0/s3`; nothing to do where there is no version 2
        tree with io."""
        control = self._cgroup / str(group).lstrip("/") / "io.max"
        parents = [self._cgroup / str(parent).lstrip("/") for parent in reversed(group.parents)]
        for folder in parents:
            with contextlib.suppress(OSError):  # no io controller, or version 1: the device is held instead
                (folder / "cgroup.subtree_control").write_text("+io")
        if not control.exists():
            return
        number = self._number(device)
        self._write(control, f"{number} wbps={self._rate or 'max'}")
        if self._rate and f"wbps={self._rate}" not in control.read_text():
            raise _not_applied(control, number)

    def _cap_dirty(self, number: str) -> None:
        folder = self._sys / "class/bdi" / number
        wanted = (("strict_limit", "0"), ("max_ratio", "100"))
        if self._rate is not None:
            wanted = (("max_bytes", str(_DIRTY_MAX)), ("strict_limit", "1"))
        for name, value in wanted:
            if (folder / name).exists():  # from Linux 6.2 on; without it, bursts of some seconds get through
                with contextlib.suppress(OSError):
                    (folder / name).write_text(value)

    def _number(self, device: str) -> str:
        info = Path(device).stat().st_rdev
        return f"{os.major(info)}:{os.minor(info)}"

    @staticmethod
    def _write(control: Path, value: str) -> None:
        try:
            control.write_text(value)
        except OSError as error:
            raise Temporary(f"{control}: {value!r} was refused: {error.strerror}", code="limit_not_applied") from error


def _not_applied(control: Path, number: str) -> Temporary:
    return Temporary(f"{control} does not show the ceiling of device {number} written to it", code="limit_not_applied")
