"""What is known of a slot, and how a later agent finds it: a file in the slot's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fairwater.node import linux
from fairwater.node.host_image import DEV
from fairwater.node.volume_ids import is_plain
from fairwater.ports.images import ROOT, ImageUser

LAYOUT = 2
"""What a slot consists of, numbered: parked ones that an agent of another number left are not used."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot with a container in it. `pid` is its first process, which began at `started` (clock ticks).

    `digest` names the image that it shows, `user` and `root` are that one's, `environment` too.
    """

    number: int
    folder: Path
    digest: str
    pid: int
    started: int
    address: str
    environment: tuple[tuple[str, str], ...] = ()
    user: ImageUser = DEV
    root: ImageUser = ROOT
    layout: int = LAYOUT

    @property
    def group(self) -> str:
        return f"s{self.number}"

    @property
    def control(self) -> Path:
        """The socket on which the first process takes commands."""
        return self.folder / "control"

    @property
    def service(self) -> Path:
        """The folder that the sandbox sees at /run/fairwater/service."""
        return self.folder / "service"

    @property
    def volume_ids(self) -> Path:
        """The user namespace that shows a volume as the image's own user's."""
        return self.folder / "ns/volume" if not is_plain(self.user.uid, self.user.gid) else self.folder / "ns/user"

    def alive(self) -> bool:
        return linux.start_time(self.pid) == self.started


def read_slot(folder: Path) -> Slot | None:
    """The slot in `folder`; an agent of before wrote fewer fields. None where its making was interrupted."""
    try:
        record = json.loads((folder / "slot.json").read_text())
        fields = {"layout": 1, "digest": record.pop("image", ""), **record}
        fields["environment"] = tuple((name, value) for name, value in fields["environment"])
        for name in {"user", "root"} & fields.keys():
            fields[name] = ImageUser(**{**fields[name], "groups": tuple(fields[name]["groups"])})
        return Slot(folder=folder, **fields)
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def write_slot(slot: Slot) -> None:
    record = asdict(slot)
    del record["folder"]
    write_whole(slot.folder / "slot.json", json.dumps(record))


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes a file that nobody ever sees half."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.chmod(mode)
    aside.replace(path)
