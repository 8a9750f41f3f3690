"""Talks to nftables through libnftables: JSON commands in, JSON answers out, over one kept context.

Each `run` is one transaction: all of it counts, or nothing. A kept context and JSON cost 0.3 ms a rule, the `nft`
program 5.8. What the rules mean is not known here.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from fairwater.domain.failure import Permanent, Temporary

Command = Mapping[str, Any]
"""One command of libnftables-json(5), such as `{"add": {"table": {…}}}`."""

LIBRARY = "libnftables.so.1"
OUTPUT_JSON = 1 << 4
OUTPUT_HANDLE = 1 << 3
ERROR_LENGTH_MAX = 600


class Nftables:
    """One context of libnftables, in the network namespace of the thread that makes it. Usable from any thread."""

    def __init__(self) -> None:
        """Raises Permanent (`nft_missing`) where the library is not installed."""
        try:
            self._library = _declare(ctypes.CDLL(LIBRARY))
        except OSError as error:
            raise Permanent(
                f"nftables: {LIBRARY} cannot be loaded ({error}); install the package libnftables1", code="nft_missing"
            ) from error
        self._lock = Lock()
        self._context: int | None = self._library.nft_ctx_new(0)
        if not self._context:
            raise Permanent("nftables: no context; the agent needs root (CAP_NET_ADMIN)", code="nft_missing")
        self._library.nft_ctx_output_set_flags(self._context, OUTPUT_JSON | OUTPUT_HANDLE)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: Sequence[Command]) -> list[dict[str, Any]]:
        """Runs the commands as one transaction and returns what they print, without the line on the version.

        Raises:
            Temporary: `nft_refused`, with the kernel's or the library's own words; nothing was changed.
        """
        text = json.dumps({"nftables": list(commands)}).encode()
        with self._lock:
            if self._context is None:
                raise Temporary("nftables: the context is closed", code="nft_refused")
            status = self._library.nft_run_cmd_from_buffer(self._context, text)
            output = self._library.nft_ctx_get_output_buffer(self._context) or b""
            error = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            # The library's message quotes the whole input below its first line; the first lines say it all.
            reason = error.decode(errors="replace").strip()[:ERROR_LENGTH_MAX] or f"status {status}"
            raise Temporary(f"nftables: {reason}", code="nft_refused")
        if not output.strip():
            return []
        answer: list[dict[str, Any]] = json.loads(output)["nftables"]
        return [line for line in answer if "metainfo" not in line]

    def close(self) -> None:
        """Frees the context; rules and sets stay. May be repeated."""
        with self._lock:
            if self._context is not None:
                self._library.nft_ctx_free(self._context)
                self._context = None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    return library
