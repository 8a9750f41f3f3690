"""Endless answers that stay alive, and end in order when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.types import Scope

from fairwater.serving.peers import STOPPING


async def kept_alive(
    source: AsyncIterator[bytes], scope: Scope, *, beat: bytes = b"", beat_s: float | None = None
) -> AsyncGenerator[bytes, None]:
    """The chunks of `source` until it ends or the server begins to stop, with `beat` after each `beat_s` seconds of
    silence. `scope` is the request's; its source is closed at the end.

    With a beat, one comes first of all, once the source has been asked: whoever has it misses nothing from there on.
    """
    stopping: asyncio.Event = scope.get(STOPPING) or asyncio.Event()
    stopped = asyncio.ensure_future(stopping.wait())
    following = asyncio.ensure_future(anext(source))
    try:
        if beat_s is not None:
            await asyncio.sleep(0)  # lets the source begin
            yield beat
        while True:
            done, _ = await asyncio.wait({following, stopped}, timeout=beat_s, return_when=asyncio.FIRST_COMPLETED)
            if following in done:
                try:
                    chunk = following.result()
                except StopAsyncIteration:
                    return
                following = asyncio.ensure_future(anext(source))
                yield chunk
            elif stopped in done:
                return
            else:
                yield beat
    finally:
        stopped.cancel()
        following.cancel()
        await asyncio.gather(stopped, following, return_exceptions=True)
        if isinstance(source, AsyncGenerator):
            await source.aclose()
