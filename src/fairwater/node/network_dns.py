"""Decides whether a workspace gets DNS answers through translation, told apart from a name server that is just silent.

The machine's own luck with the same server is the measure. One slot asks at a time: name servers throttle bursts, and
parking twenty slots at once must not look like a broken network.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from enum import Enum
from ipaddress import IPv4Address

from fairwater.node.linux import in_namespaces

WAITS_S = (0.05, 0.15, 0.3)
"""Half a second for each of at most three rounds: the workspace, the machine, the workspace once more."""
SILENCE_REMEMBERED_S = 10.0
TURN_S_MAX = 2.0

_ROOT_NAMESERVERS = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x00" + b"\x00\x02\x00\x01"
_HEADER_SIZE, _IS_ANSWER = 12, 0x80


class Verdict(Enum):
    ANSWERED = "the workspace gets answers"
    UNANSWERED = "the machine gets answers and the workspace does not"
    SILENT = "nor does it answer the machine"


class ResolverCheck:
    """Remembers for a while that the name server is silent, so that slots are not held up one after the other."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._silent: dict[IPv4Address, float] = {}

    def check(self, resolver: IPv4Address, namespace: int) -> Verdict:
        """Takes at most 1.5 s, and as much as 2 s of waiting for its turn. Called in the machine's own namespace."""
        has_turn = self._turn.acquire(timeout=TURN_S_MAX)
        try:
            if time.monotonic() < self._silent.get(resolver, 0.0):
                return Verdict.SILENT
            if _answers_inside(resolver, namespace):
                return Verdict.ANSWERED
            if not resolver_answers(resolver):
                self._silent = {resolver: time.monotonic() + SILENCE_REMEMBERED_S}
                return Verdict.SILENT
            # One answer to the machine may be luck with a server that loses questions.
            return Verdict.ANSWERED if _answers_inside(resolver, namespace) else Verdict.UNANSWERED
        finally:
            if has_turn:
                self._turn.release()


def _answers_inside(resolver: IPv4Address, namespace: int) -> bool:
    return in_namespaces(lambda: resolver_answers(resolver), net_ns=namespace)


def resolver_answers(resolver: IPv4Address, waits_s: Sequence[float] = WAITS_S) -> bool:
    """Whether a name server answers anything at all to a question for the root's servers, from this thread's namespace.

    The question is asked again after each of `waits_s`; an answer to any of them counts.
    """
    number = os.urandom(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for wait_s in waits_s:
            until = time.monotonic() + wait_s
            try:
                udp.connect((str(resolver), 53))
                udp.send(number + _ROOT_NAMESERVERS)
                while (left_s := until - time.monotonic()) > 0:
                    udp.settimeout(left_s)
                    answer = udp.recv(4096)
                    if len(answer) >= _HEADER_SIZE and answer[:2] == number and answer[2] & _IS_ANSWER:
                        return True
            except OSError:  # no answer in time, no route, or refused
                continue
    return False
