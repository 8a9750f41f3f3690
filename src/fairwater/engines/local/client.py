"""The node agent from afar: its two ports over a unix socket.

Decides how long an answer is waited for and what is asked again; refuses to know what the answers are for. All of the
agent's commands may be repeated, so one that fell to a kept connection which the agent had closed meanwhile is sent
once more.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter, ValidationError

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunFacts, TaskFacts
from fairwater.engines.local.failures import connection_failures, read_problem
from fairwater.engines.local.process import start_remote
from fairwater.ports.agent import API_VERSION, VERSION_HEADER, Fact, FileEntry, Hello, StartRequest
from fairwater.ports.process import ExecRequest, Process
from fairwater.serving.agent_messages import (
    ALL_RUN_FACTS,
    FACTS,
    FOLDER,
    HELLO,
    MAYBE_RUN_FACTS,
    RUN_FACTS,
    START_REQUEST,
    TASKS,
)

ANSWER_S = 30.0
SILENCE_S_MAX = 25.0
"""The agent's stream of changes has a line at least every 10 s; silence for longer means that nobody is there."""
_BODY_ERROR_BYTES_MAX = 64 * 1024
_LINE_BYTES_MAX = 4 * 1024 * 1024
"""Far beyond what a run can be set up with: see the bounds in `domain.workspaces.config`."""
T = TypeVar("T")


class AgentClient:
    """Implements `ports.agent.RunAgent` and `WorkspaceAccess` on the agent's `socket`. To be closed at the end.

    Every method raises, beside what the ports name:
        Temporary: `agent_away` (nobody listens there), `agent_slow`, `agent_failed`.
        Permanent: `agent_version` (it speaks another version of its API), `agent_protocol`.
    """

    def __init__(self, socket: Path, *, answer_s: float = ANSWER_S) -> None:
        self._socket = socket
        self._answer_s = answer_s
        self._http = self._connections(64)
        # What people read takes as long as they like: it must not take the connections that starts and stops need.
        self._streams = self._connections(512)

    def _connections(self, most: int) -> httpx2.AsyncClient:
        # No TLS is spoken; a context of our own keeps the machine's certificates from being loaded for nothing.
        transport = httpx2.AsyncHTTPTransport(
            uds=str(self._socket),
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=16, keepalive_expiry=60),
        )
        return httpx2.AsyncClient(
            transport=transport,
            base_url="http://agent",
            headers={VERSION_HEADER: str(API_VERSION)},
            timeout=httpx2.Timeout(self._answer_s, connect=5.0),
            trust_env=False,
        )

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()
        await self._streams.aclose()

    # --- RunAgent ---------------------------------------------------------------------------------------------------

    async def hello(self) -> Hello:
        return _read(HELLO, await self._ask("GET", "/v1/hello"))

    async def runs(self) -> tuple[RunFacts, ...]:
        return _read(ALL_RUN_FACTS, await self._ask("GET", "/v1/runs"))

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        answer = await self._ask("PUT", f"/v1/runs/{_part(workspace)}", START_REQUEST.dump_json(request))
        return _read(RUN_FACTS, answer)

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        path = f"/v1/runs/{_part(workspace)}?run={run}&force={'true' if force else 'false'}"
        return _read(MAYBE_RUN_FACTS, await self._ask("DELETE", path))

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        await self._ask("DELETE", f"/v1/volumes/{_part(workspace)}?run={run}")

    async def changes(self) -> AsyncIterator[RunFacts]:
        silence = httpx2.Timeout(self._answer_s, connect=5.0, read=SILENCE_S_MAX)
        rest = b""
        async for chunk in self._stream("/v1/changes", timeout=silence, http=self._http):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_BYTES_MAX:
                raise Permanent("the node agent sent a line without end", code="agent_protocol")
            for line in lines:
                if line:
                    yield _read(RUN_FACTS, line)

    async def facts(self) -> tuple[Fact, ...]:
        """What the node offers, and what not."""
        return _read(FACTS, await self._ask("GET", "/v1/facts"))

    # --- WorkspaceAccess --------------------------------------------------------------------------------------------

    async def exec(self, workspace: WorkspaceId, run: RunNumber, request: ExecRequest) -> Process:
        path = f"/v1/exec/{_part(workspace)}?run={run}"
        return await start_remote(self._socket, path, request, timeout_s=self._answer_s)

    async def list_folder(self, workspace: WorkspaceId, path: str) -> tuple[FileEntry, ...]:
        answer = await self._ask("GET", _file(workspace, path), headers={"Accept": "application/json"})
        return _read(FOLDER, answer)

    async def read_file(self, workspace: WorkspaceId, path: str) -> AsyncIterator[bytes]:
        chunks = self._stream(_file(workspace, path), headers={"Accept": "application/octet-stream"})
        # Asked for one chunk, a file that cannot be read says so here and not in the middle of somebody's answer.
        first = await anext(chunks, b"")
        return _rejoined(first, chunks)

    async def write_file(self, workspace: WorkspaceId, path: str, chunks: AsyncIterator[bytes]) -> int:
        with connection_failures(self._socket):
            answer = await self._streams.put(_file(workspace, path), content=chunks)
        if answer.is_error:
            raise read_problem(answer.status_code, answer.content)
        return _read(_WRITTEN, answer.content)["size"]

    async def logs(self, workspace: WorkspaceId, run: RunNumber, *, follow: bool = False) -> AsyncIterator[bytes]:
        path = f"/v1/logs/{_part(workspace)}?run={run}&follow={'true' if follow else 'false'}"
        async for chunk in self._stream(path, timeout=self._patience(follow=follow)):
            yield chunk

    def _patience(self, *, follow: bool) -> httpx2.Timeout:
        return httpx2.Timeout(self._answer_s, connect=5.0, read=None if follow else self._answer_s)

    async def tasks(self, workspace: WorkspaceId, run: RunNumber) -> tuple[TaskFacts, ...]:
        return _read(TASKS, await self._ask("GET", f"/v1/tasks/{_part(workspace)}?run={run}"))

    async def task_log(
        self, workspace: WorkspaceId, run: RunNumber, task: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        path = f"/v1/tasks/{_part(workspace)}/{task}/log?run={run}&follow={'true' if follow else 'false'}"
        async for chunk in self._stream(path, timeout=self._patience(follow=follow)):
            yield chunk

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        with connection_failures(self._socket):
            try:
                answer = await self._http.request(method, path, content=body, headers=headers)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                answer = await self._http.request(method, path, content=body, headers=headers)
        if answer.is_error:
            raise read_problem(answer.status_code, answer.content)
        return answer.content

    async def _stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> AsyncIterator[bytes]:
        patience, http = timeout or self._streams.timeout, http or self._streams
        with connection_failures(self._socket):
            async with http.stream("GET", path, headers=headers, timeout=patience) as answer:
                if answer.is_error:
                    raise read_problem(answer.status_code, (await answer.aread())[:_BODY_ERROR_BYTES_MAX])
                async for chunk in answer.aiter_bytes():
                    yield chunk


_WRITTEN = TypeAdapter(dict[str, int])


async def _rejoined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk


def _part(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="").replace(".", "%2E")


def _file(workspace: WorkspaceId, path: str) -> str:
    """The route of a file. Dots are encoded: no client may take `..` away before the agent has judged it."""
    return f"/v1/files/{_part(workspace)}/{quote(path.removeprefix('/'), safe='/').replace('.', '%2E')}"


def _read(adapter: TypeAdapter[T], content: bytes) -> T:
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise Permanent(
            f"the node agent's answer is not understood ({'.'.join(map(str, first['loc']))}: {first['msg']})",
            code="agent_protocol",
        ) from error
