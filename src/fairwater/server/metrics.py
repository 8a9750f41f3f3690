"""The server's figures for Prometheus. Counts what is in the database, not what was attempted."""

from __future__ import annotations

import asyncio
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from fairwater.domain.workspaces.workspace import STARTING, Event, Phase
from fairwater.ports.catalogue import Committed

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STARTUP_BUCKETS_S = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_LAG_EVERY_S = 0.5
_LAG_SAMPLES = 20


class Metrics:
    """`cluster` labels what happened there. Every instance has a registry of its own."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._startup = Histogram(
            "fairwater_workspace_startup_seconds",
            "From the request for a run to its first process.",
            ("cluster", "class"),
            buckets=_STARTUP_BUCKETS_S,
            registry=self.registry,
        )
        self._starts = Counter(
            "fairwater_workspace_starts",
            "Runs that came up (started), could not (failed), or were ended before (abandoned).",
            ("outcome",),
            registry=self.registry,
        )
        self._stops = Counter(
            "fairwater_workspace_stops",
            "Runs of which nothing is left on a node but the volume, by why they ended.",
            ("reason",),
            registry=self.registry,
        )
        self._refusals = Counter(
            "fairwater_workspace_start_refusals",
            "Starts refused by the limits of an account.",
            ("code",),
            registry=self.registry,
        )
        self._lag = Gauge(
            "fairwater_event_loop_lag_seconds",
            f"The largest delay of the server's event loop within {_LAG_EVERY_S * _LAG_SAMPLES:g} s.",
            registry=self.registry,
        )
        for outcome in ("started", "failed", "abandoned"):
            self._starts.labels(outcome)
        for reason in ("stopped", "failed", "deleted"):
            self._stops.labels(reason)

    def observe(self, change: Committed) -> None:
        """Each change counts once, at the server that made it."""
        if change.elsewhere:
            return
        if change.before in STARTING:
            if change.event is Event.READY:
                self._starts.labels("started").inc()
                if change.asked_at is not None:
                    elapsed_s = (change.at - change.asked_at).total_seconds()
                    self._startup.labels(self._cluster, change.workspace_class).observe(elapsed_s)
            elif change.event is Event.FAIL:
                self._starts.labels("failed").inc()
            elif change.after.phase is Phase.STOPPING:
                self._starts.labels("abandoned").inc()
        if change.event is Event.RELEASED:
            self._stops.labels(change.after.phase.value).inc()

    def refused(self, code: str) -> None:
        self._refusals.labels(code).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)

    async def watch_event_loop(self) -> None:
        """Until cancelled. A loop that is late in waking this task is late for everybody."""
        loop = asyncio.get_running_loop()
        samples: deque[float] = deque(maxlen=_LAG_SAMPLES)
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            samples.append(max(0.0, loop.time() - due))
            self._lag.set(max(samples))
