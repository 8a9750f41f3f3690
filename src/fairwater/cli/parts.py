"""What `server run` and `node run` share: settings, the data directory, and the end of their supervisor.

A supervised part has the supervisor's pipe as its standard input: when that ends, the supervisor is gone, however it
died, and the part ends in order as for SIGTERM. The lock of the data directory is open in it too, so that the directory
stays locked until its last part has ended.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fairwater.settings import Settings

SupervisedOption = Annotated[int | None, typer.Option("--supervised", hidden=True)]


def prepare(data_dir: Path | None, config: Path | None, supervised: int | None) -> tuple[Settings, Path]:
    """The settings and the data directory to run a part with."""
    from fairwater.data_dir import default_data_dirs
    from fairwater.settings import load_settings

    if supervised is not None:
        _end_with_supervisor(supervised)
    return load_settings(config), (data_dir or default_data_dirs()[0]).absolute()


def _end_with_supervisor(lock: int) -> None:
    os.set_inheritable(lock, False)  # the part keeps it; what it starts, workspaces above all, must not
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        while os.read(pipe, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="supervisor").start()
