"""Serves a run's credentials into its sandbox, over two sockets: git's credential protocol and the SSH agent's.

The secrets stay with the agent: a token goes to whoever asks for its host in the workspace, for that is whose it is; a
key never leaves. The sockets are made in a folder that the sandbox sees and cannot write to. Clients are hostile: what
they send is bounded in size and time, and how much of the agent's time one workspace takes is bounded too. What is
answered is decided in `credential_git.py` and `credential_agent.py`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.secrets import Credential
from fairwater.node import credential_agent, credential_git, linux
from fairwater.node.bundle import CREDENTIAL_HELPER_PATH, SERVICE_PATH
from fairwater.ports.secrets import SecretKeeper

CLIENTS_MAX = 16
"""Of a socket at once; more wait in the kernel, at no cost to the agent."""
MESSAGE_WITHIN_S = 10.0
IDLE_MAX_S = 600.0
"""Programs keep their connection to an SSH agent."""
PAUSE_S = 0.005
"""Between two clients, and two messages: 200 a second."""
_RESTS_PER_WORK = 9
"""At most a tenth of one processor signs for a workspace."""
_REST_MAX_S = 1.0


@dataclass(eq=False)
class _Service:
    """What is served in one folder."""

    workspace: WorkspaceId
    listeners: list[socket.socket] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    keys: tuple[Credential, ...] = field(default=(), repr=False)
    identities: tuple[credential_agent.Identity, ...] = field(default=(), repr=False)


_Talk = Callable[[_Service, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


class CredentialService:
    """One for a node."""

    def __init__(self, secrets: SecretKeeper, *, message_within_s: float = MESSAGE_WITHIN_S) -> None:
        self._secrets = secrets
        self._message_within_s = message_within_s
        self._log = structlog.get_logger().bind(part="credentials")
        self._services: dict[Path, _Service] = {}

    def environment(self, workspace: WorkspaceId) -> Mapping[str, str]:
        """What makes the programs of a workspace ask here."""
        settings = credential_git.git_configuration(self._secrets.get(workspace), CREDENTIAL_HELPER_PATH)
        return {"SSH_AUTH_SOCK": f"{SERVICE_PATH}/ssh-agent", **credential_git.as_environment(settings)}

    async def open(self, folder: Path, workspace: WorkspaceId) -> None:
        """Serves `workspace` in `folder`, in place of whatever was served there before. The folder is there, and the
        sandbox's users may enter it.

        May be repeated, also after a restart of the agent: the sandbox sees the new sockets.
        """
        await self._end(folder)
        service = self._services[folder] = _Service(workspace)
        try:
            for name, talk in (("credential", self._talk_git), ("ssh-agent", self._talk_ssh)):
                service.listeners.append(_listen(folder, name))
                self._begin(service, self._accept(service, service.listeners[-1], talk))
        except BaseException:
            await self._end(folder)
            raise

    async def close(self, folder: Path) -> None:
        """Ends what is served in `folder`; fine when nothing is."""
        await self._end(folder)
        for name in ("credential", "ssh-agent"):
            (folder / name).unlink(missing_ok=True)

    async def _end(self, folder: Path) -> None:
        service = self._services.pop(folder, None)
        if service is None:
            return
        tasks = tuple(service.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in service.listeners:
            listener.close()

    def _begin(self, service: _Service, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        service.tasks.add(task)
        task.add_done_callback(service.tasks.discard)
        return task

    async def _accept(self, service: _Service, listener: socket.socket, talk: _Talk) -> None:
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(CLIENTS_MAX)
        while True:
            await places.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # the client has left already, or there is no descriptor for it now
                places.release()
                await asyncio.sleep(_REST_MAX_S)
                continue
            client = self._begin(service, self._serve(service, connection, talk))
            client.add_done_callback(functools.partial(_leave, connection, places))
            await asyncio.sleep(PAUSE_S)

    async def _serve(self, service: _Service, connection: socket.socket, talk: _Talk) -> None:
        """One client, to its end."""
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            await talk(service, reader, writer)
            writer.close()
            async with asyncio.timeout(self._message_within_s):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it left, or was too slow
        except Exception as error:  # noqa: BLE001 - a loop's edge
            # Not the error itself: it could quote what was being signed, or with what.
            self._log.error("client_failed", workspace=service.workspace, kind=type(error).__name__)
        finally:
            writer.transport.abort()

    async def _talk_git(self, service: _Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = b""
        async with asyncio.timeout(self._message_within_s):
            while b"\n\n" not in question:
                part = await reader.read(credential_git.QUESTION_MAX)
                question += part
                if len(question) > credential_git.QUESTION_MAX:
                    return
                if not part:
                    break
            writer.write(credential_git.answer_git(question, self._secrets.get(service.workspace)))
            await writer.drain()

    async def _talk_ssh(self, service: _Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE_MAX_S):
                first = await reader.readexactly(1)
            async with asyncio.timeout(self._message_within_s):
                size = int.from_bytes(first + await reader.readexactly(3), "big")
                if not 0 < size <= credential_agent.MESSAGE_MAX:
                    return
                message = await reader.readexactly(size)
            async with service.turn:
                begun = time.monotonic()
                answer = await self._answer_ssh(service, message)
                rest = _RESTS_PER_WORK * (time.monotonic() - begun)
                writer.write(len(answer).to_bytes(4, "big") + answer)
                async with asyncio.timeout(self._message_within_s):
                    await writer.drain()
                await asyncio.sleep(min(max(rest, PAUSE_S), _REST_MAX_S))

    async def _answer_ssh(self, service: _Service, message: bytes) -> bytes:
        if not credential_agent.is_question(message):
            return credential_agent.FAILURE
        keys = self._secrets.get(service.workspace).keys()
        if keys != service.keys:
            service.identities = await asyncio.to_thread(credential_agent.load_identities, keys, service.workspace)
            service.keys = keys
        return await asyncio.to_thread(credential_agent.answer_agent, message, service.identities)


def _leave(connection: socket.socket, places: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
    """A client's end, also of one that was cancelled before it was heard."""
    connection.close()
    places.release()


def _listen(folder: Path, name: str) -> socket.socket:
    """A listening socket that replaces the one of before in one step. By way of the folder's descriptor, since a
    socket's path holds 107 bytes only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with linux.opened(folder, os.O_RDONLY | os.O_DIRECTORY) as opened:
            way = Path(f"/proc/self/fd/{opened}")
            aside = way / f".{name}.new"
            aside.unlink(missing_ok=True)
            listener.bind(str(aside))
            aside.chmod(0o666)  # any user of the sandbox; the machine's own cannot reach the folder
            listener.listen(64)
            aside.rename(way / name)
    except BaseException:
        listener.close()
        raise
    return listener
