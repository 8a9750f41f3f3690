"""`fairwater admin`: the database as a whole, saved and put back while the server runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from fairwater.cli.command import JsonOption, YesOption, application, confirm, connected
from fairwater.cli.output import ExitCode, say, write_json, write_line
from fairwater.cli.wait import display
from fairwater.domain.failure import Permanent
from fairwater.domain.units import format_bytes

if TYPE_CHECKING:
    from fairwater.cli.client import Client

app = application("Save the server's database and put it back, while it runs (administrators).")
_PIECE_BYTES = 1 << 18
_SILENCE_S = 120.0
"""A server that sends nothing for so long has not the backup in hand any more."""


@app.command()
@connected
def backup(
    client: Client,
    file: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="Where to; - is standard output.", show_default=False)
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where there is one.")] = False,
) -> None:
    """Save everything but the content of workspaces. Secrets stay sealed: keep the master key too, elsewhere."""
    if file == "-" and sys.stdout.isatty():
        say("error: a backup is no text for a terminal: name a file, or lead it into a pipe")
        raise typer.Exit(ExitCode.WRONG_USE)
    target = Path(file or time.strftime("fairwater-%Y%m%d-%H%M%S.backup"))
    size = 0
    with (
        _standard_output() if file == "-" else _new_file(target, force) as write,
        client.stream("/admin/backup", silence_s=_SILENCE_S) as response,
        display() as shown,
    ):
        for piece in response.iter_raw():
            write(piece)
            size += len(piece)
            shown.progress("backup", {"step": "saving", "done": size, "total": None, "unit": "bytes"})
    if file != "-":
        write_line(f"{target}  {format_bytes(size)}")


@app.command()
@connected
def restore(
    client: Client,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A backup; - is standard input.")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of everything that is in the server's database."""
    try:
        source = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise Permanent(f"{file}: {error.strerror}", code="cannot_read") from None
    with source:
        confirm(f"Replace everything in the database of {client.target} with {file}?", yes)
        total = None if file == "-" else os.fstat(source.fileno()).st_size
        with display() as shown:
            pieces = _told(source, lambda done: shown.progress("restore", _progress(done, total)))
            answer = client.post_stream("/admin/restore", pieces, confirm="true")
    if as_json:
        write_json(answer)
    else:
        write_line(f"{file} is restored; log in again where a token is no longer known")
    if answer.get("warning"):
        say(f"warning: {answer['warning']}")
    if answer.get("unknown"):
        say(
            f"warning: {len(answer['unknown'])} workspaces run that {file} does not know, and nobody looks after them "
            f"any more: {', '.join(answer['unknown'])}; restore a later backup to have them again"
        )


@app.command("rotate-keys")
@connected
def rotate_keys(client: Client, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Seal every secret anew with the first master key, so that the old ones can be taken away."""
    confirm("Seal every secret anew? Every server must have the new master key already.", yes)
    answer = client.post("/admin/rotate-keys")
    if as_json:
        write_json(answer)
        return
    write_line(f"{answer['sealed']} secrets are sealed anew; the old master keys can be removed")


@contextmanager
def _standard_output() -> Iterator[Callable[[bytes], object]]:
    yield sys.stdout.buffer.write
    sys.stdout.buffer.flush()


@contextmanager
def _new_file(target: Path, force: bool) -> Iterator[Callable[[bytes], object]]:
    """A file for its owner alone, which is there only once it is whole.

    Raises:
        Permanent: `file_exists`, `cannot_write`.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if not force:
            os.close(_create(target))  # the name is taken from here on, and never anybody else's file
        try:
            with open(_create(draft), "wb") as file:
                yield file.write
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            for left in (draft,) if force else (draft, target):
                left.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise Permanent(f"{target} is there already: name another file, or say --force", code="file_exists") from None
    except OSError as error:
        raise Permanent(f"{target}: {error.strerror}", code="cannot_write") from None


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _told(source: IO[bytes], tell: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    while piece := source.read(_PIECE_BYTES):
        yield piece
        done += len(piece)
        tell(done)


def _progress(done: int, total: int | None) -> dict[str, object]:
    step = "restoring" if done == total else "sending"
    return {"step": step, "done": done, "total": total, "unit": "bytes"}
