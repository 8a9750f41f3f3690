"""Workspaces as plain processes and folders: the fallback where the machine offers no isolation, and tests' fake.

Keeps the contracts of the ports but for what `NOT_ISOLATED` says, which whoever starts Fairwater this way is shown.
"""

NOT_ISOLATED = (
    "files: a workspace can read and write whatever the user that started Fairwater can",
    "processes: a workspace sees, and can signal, that user's processes, those of other workspaces among them",
    "user: there is no root inside a workspace, and none is pretended",
    "network: workspaces share the machine's network, localhost and cloud metadata addresses included",
    "limits: CPU, memory, number of processes and disk are not limited",
    "image: the machine itself; only 'host' is offered",
    "end: a process that clears its environment is not found again, and outlives its workspace",
)
"""What the plain adapters do not give, one line each: what, and what that means."""
