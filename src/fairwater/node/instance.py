"""Which of the up to 16 agents of this machine this one is.

The number gives an agent its share of what is the machine's: user ids, addresses, names of devices and groups. It
belongs to a data directory as long as anything of it may still run, so a restarted agent gets the same one again; it is
kept below `/run`, because a reboot ends all of that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Permanent

INSTANCES_MAX = 16


@dataclass(slots=True)
class Instance:
    """A claimed number; `folder` is for what lives until the next boot. Held until `release`."""

    number: int
    folder: Path
    _lock: int

    @property
    def name(self) -> str:
        """What the agent's groups on this machine are called."""
        return f"fairwater-{self.number}"

    def in_use(self) -> bool:
        """Whether the number was kept for what still runs."""
        return (self.folder / "owner").exists()

    def release(self, *, forget: bool) -> None:
        """Ends the claim; with `forget`, the number is free for another data directory."""
        if forget:
            (self.folder / "owner").unlink(missing_ok=True)
        os.close(self._lock)


def claim_instance(data_dir: Path, registry: Path = Path("/run/fairwater")) -> Instance:
    """The number of the agent on `data_dir`: the one it had, else the lowest that nobody has.

    Raises:
        Permanent: `agent_running`, where an agent already runs on this data directory; `too_many_agents`.
    """
    registry.mkdir(parents=True, exist_ok=True)
    registry.chmod(0o711)
    owner = str(data_dir.resolve())
    # One claim at a time: two agents that begin together must not both find the same number free.
    with _claiming(registry):
        owners = {number: _owner(registry / str(number)) for number in range(INSTANCES_MAX)}
        mine = [number for number, name in owners.items() if name == owner]
        free = [number for number, name in owners.items() if name is None or not Path(name).exists()]
        for number in [*mine, *free]:
            folder = registry / str(number)
            folder.mkdir(exist_ok=True)
            folder.chmod(0o711)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                if number in mine:
                    raise Permanent(
                        f"an agent already runs on {data_dir}: stop it first, or choose another --data-dir",
                        code="agent_running",
                    ) from None
                continue
            (folder / "owner").write_text(owner)
            return Instance(number, folder, lock)
    raise Permanent(
        f"{INSTANCES_MAX} agents are on this machine already, the most there can be: stop one of them",
        code="too_many_agents",
    )


def remove_if_free(instance: Instance) -> None:
    """Removes the folder of a number that was given back, unless somebody has taken it meanwhile."""
    with _claiming(instance.folder.parent):
        if not instance.in_use():
            shutil.rmtree(instance.folder, ignore_errors=True)


@contextlib.contextmanager
def _claiming(registry: Path) -> Iterator[None]:
    """One claim at a time. Nobody else may open the file: whoever can may hold the lock."""
    claims = os.open(registry / "claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(claims, 0o600)
        fcntl.flock(claims, fcntl.LOCK_EX)
        yield
    finally:
        os.close(claims)


def _owner(folder: Path) -> str | None:
    try:
        return (folder / "owner").read_text() or None
    except FileNotFoundError:
        return None
