"""Fairwater on this machine, from `up` to Ctrl-C: checks, parts, first workspace, and the end of all of it.

Decides the order of things and what is said about them. What a check looks at is `preparation`'s, how processes are
kept is `supervisor`'s, how a workspace is waited for is `wait`'s.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from fairwater import __version__
from fairwater.cli import preparation
from fairwater.cli.client import Client, knock
from fairwater.cli.connection import Target
from fairwater.cli.output import ExitCode, say
from fairwater.cli.problem import workspace_path
from fairwater.cli.remaining_runs import stop_remaining_runs
from fairwater.cli.supervisor import Interrupted, Interrupts, Part, Supervisor
from fairwater.cli.wait import RUNNING, STOPPED, display, wait_for
from fairwater.cli.workspace import context_url
from fairwater.data_dir import DataDir, default_data_dirs
from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.context import Scheme, parse_context
from fairwater.domain.workspaces.workspace import ACTIVE
from fairwater.ports.agent import API_VERSION, VERSION_HEADER
from fairwater.settings import KEYS, Settings, load_settings
from fairwater.settings_sources import variable_of

_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = tuple(name for proxy in ("http", "https", "no") for name in (f"{proxy}_proxy", f"{proxy}_proxy".upper()))
_FORCED_S = 15.0
_NOT_ISOLATED = (
    "not running as root: workspaces are plain processes of this user, and these are NOT isolated:",
    "  files: a workspace reads and writes everything that you can",
    "  processes: a workspace sees and can end your other processes, and those of other workspaces",
    "  network: a workspace uses this machine's network, its local services too",
    "  limits: no bounds on CPU, memory, processes and disk",
    "  use it only for repositories that you would run on this machine anyway; for isolation, run it as root",
)


def _tell(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone; what must end in order still does
        say(line)


@dataclass(slots=True)
class Installation:
    """One `fairwater up`."""

    settings: Settings
    data: DataDir
    source: str | None

    @classmethod
    def prepared(
        cls, git_url: str | None, data_dir: Path | None, listen: str | None, roots: list[Path], config: Path | None
    ) -> Installation:
        """Everything that can be known to be wrong before anything is touched is found here."""
        flags: dict[str, object] = {"server.listen": listen}
        settings = load_settings(config, flags=flags)
        if os.geteuid() != 0:
            flags["node.runtime"] = "plain"
        source = context_url(git_url) if git_url is not None else None
        roots = [root.resolve() for root in roots]
        if source is not None:
            context = parse_context(source)
            if context.scheme is Scheme.FILE:
                roots.append(Path(context.clone_url.removeprefix("file://")).resolve())
        if roots:
            flags["node.git_file_roots"] = [str(root) for root in (*settings.node.git_file_roots, *roots)]
        settings = load_settings(config, flags=flags)
        return cls(settings, DataDir((data_dir or default_data_dirs()[0]).absolute()), source)

    def run(self) -> int:
        """Until Ctrl-C, or until it cannot go on."""
        data = self.data
        preparation.check_format(data)
        with suppress(OSError):
            data.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not os.access(data.root, os.W_OK | os.X_OK):
            raise Permanent(f"this user cannot write to {data.root}: give another --data-dir", code="bad_data_dir")
        lock = preparation.lock(data, self.settings.server.listen, _tell)
        try:
            account = self._prepare()
            with Interrupts() as interrupts:
                return self._supervise(Supervisor(self._parts(account), lock, _tell, interrupts))
        finally:
            os.close(lock)

    def _prepare(self) -> preparation.Account | None:
        """The rest of the checks, and the layout; the account that the server runs as, None for this user's own."""
        settings, data, root = self.settings, self.data, os.geteuid() == 0
        preparation.check_port(settings.server.listen)
        runtime = settings.node.runtime
        if root and runtime != "plain" and shutil.which(runtime) is None:
            raise Permanent(
                f"{runtime} is not installed, and workspaces need it to be isolated: apt-get install {runtime}, or "
                "configure another as node.runtime",
                code="no_runtime",
            )
        for line in () if root else _NOT_ISOLATED:
            _tell(line)
        account = preparation.ensure_account(settings.server.user, _tell) if root else None
        preparation.lay_out(data, account)
        if account is not None:
            preparation.check_reach(data, account)
        preparation.mark_format(data)
        return account

    def _supervise(self, supervisor: Supervisor) -> int:
        try:
            try:
                _tell(f"Fairwater {__version__}, data in {self.data.root}")
                supervisor.start()
                _tell(f"server and node agent are ready: {self.settings.server.public_url}")
                self._greet()
                supervisor.wait()
            except Interrupted:
                _tell("stopping; once more to skip the grace of workspaces")
            stopped = self._stop_workspaces()
        finally:
            supervisor.stop()
        what = "everything is" if stopped else "the server and the node agent are"
        _tell(f"{what} stopped; content stays in {self.data.root}")
        return ExitCode.OK

    def _client(self) -> Client:
        return Client(Target("http://fairwater", self.data.server_socket))

    def _greet(self) -> None:
        """Brings up the first workspace where one is asked for, and says how to reach what is there."""
        name = "NAME"
        if self.source is not None:
            try:
                with self._client() as client, display() as shown:
                    workspace = wait_for(client, first_workspace(client, self.source), RUNNING, 1800, shown)
                name = str(workspace["name"] or workspace["id"])
                _tell(f"workspace {name} is running: {workspace['url']}")
            except (Permanent, Temporary) as failure:
                _tell(f"the workspace of {self.source} did not start: {failure.message}")
        program, where = _program(), self._where()
        _tell(f"  enter one:   {program} ws exec{where} {name} -- bash -l")
        _tell(f"  create one:  {program} ws create{where} GIT_URL --wait")
        _tell(f"  list them:   {program} ws list{where}")
        _tell("  stop all:    Ctrl-C")

    def _where(self) -> str:
        return "" if self.data.root == default_data_dirs()[0] else f" --data-dir {self.data.root}"

    def _stop_workspaces(self) -> bool:
        """Stops what is active: in order first, at once when interrupted again. Whether nothing may run any more."""
        grace_s = self.settings.node.stop_grace_s + self.settings.deadlines.stopping_s
        for force, bound_s in ((False, grace_s), (True, _FORCED_S)):
            try:
                with self._client() as client:
                    stop_all(client, bound_s, force=force)
                return stop_remaining_runs(Target("http://node", self.data.node_socket), bound_s, _tell)
            except Interrupted:
                _tell("killing the workspaces" if not force else "leaving them")
            except (Permanent, Temporary) as failure:
                _tell(f"workspaces that still run are taken up again by the next fairwater up: {failure.message}")
                return False
        return False

    def _parts(self, account: preparation.Account | None) -> tuple[Part, Part]:
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        kept["PYTHONUNBUFFERED"] = "1"
        settings = self.settings.environment()
        proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        secret = {variable_of(key.name) for key in KEYS if key.secret}
        own = {name: text for name, text in settings.items() if name not in secret}
        command = (sys.executable, "-I", "-m", "fairwater.cli.main")
        where = ("run", "--data-dir", str(self.data.root))
        return (
            Part(
                "node agent",
                (*command, "node", *where),
                {**kept, **proxies, **own, "HOME": str(self.data.node)},
                self.data.logs / "node.log",
                self._node_ready,
            ),
            Part(
                "server",
                (*command, "server", *where),
                {**kept, **settings, "HOME": str(self.data.server)},
                self.data.logs / "server.log",
                self._server_ready,
                account,
            ),
        )

    def _node_ready(self) -> bool:
        target = Target("http://node", self.data.node_socket)
        transport = httpx2.HTTPTransport(uds=str(target.socket))
        headers = {VERSION_HEADER: str(API_VERSION)}
        try:
            knock(target)
            with httpx2.Client(transport=transport, headers=headers, timeout=2) as client:
                return client.get(f"{target.url}/v1/hello").is_success
        except (httpx2.TransportError, Permanent):
            return False

    def _server_ready(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.readiness()["ready"])
        except (Permanent, Temporary):
            return False


def first_workspace(client: Client, source: str) -> dict[str, Any]:
    """The workspace of `source`: the one there is, started where it is at rest, else a new one."""
    for item in client.items("/workspaces", owner="me"):
        if item["context_url"] == source and item["phase"] != "deleted":
            if item["phase"] in ACTIVE:
                return item
            started = client.post(workspace_path(item["id"], "start"))
            return started if isinstance(started, dict) else item
    created: dict[str, Any] = client.post("/workspaces", {"context_url": source})
    return created


def stop_all(client: Client, bound_s: float, *, force: bool) -> None:
    """Stops every active workspace, all at a time, and waits. Raises Temporary where one takes longer than allowed."""
    active = [item for item in client.items("/workspaces", owner="all") if item["phase"] in ACTIVE]
    stopping = [client.post(workspace_path(item["id"], "stop"), {"force": force}) for item in active]
    ends = time.monotonic() + bound_s
    with display() as shown:
        for item in stopping:
            wait_for(client, item, STOPPED, max(1.0, ends - time.monotonic()), shown)


def _program() -> str:
    return "fairwater" if shutil.which("fairwater") else str(Path(sys.executable).with_name("fairwater"))
