"""The messages of `ports/agent.py` as JSON, for both ends of the agent's socket.

Members that are not known are left out, so that each end works with a version before and after its own.
"""

from __future__ import annotations

from pydantic import TypeAdapter

from fairwater.domain.workspaces.run import RunFacts, TaskFacts
from fairwater.ports.agent import Fact, FileEntry, Hello, StartRequest
from fairwater.ports.process import ExecRequest

HELLO = TypeAdapter(Hello)
RUN_FACTS = TypeAdapter(RunFacts)
MAYBE_RUN_FACTS: TypeAdapter[RunFacts | None] = TypeAdapter(RunFacts | None)
ALL_RUN_FACTS = TypeAdapter(tuple[RunFacts, ...])
START_REQUEST = TypeAdapter(StartRequest)
EXEC_REQUEST = TypeAdapter(ExecRequest)
FOLDER = TypeAdapter(tuple[FileEntry, ...])
FACTS = TypeAdapter(tuple[Fact, ...])
TASKS = TypeAdapter(tuple[TaskFacts, ...])
