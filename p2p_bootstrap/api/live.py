"""How does the agent answer with something that goes on while the caller stays?

JSON lines, for as long as the work goes on; the work is cancelled when the caller closes the connection. What
goes wrong after the first line is the last line: ``{"error", "hint", "exit_code"}``; else ``{"done"}`` is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from p2p_bootstrap.redaction import redact
from p2p_network.core.errors import P2PError

Say = Callable[[dict[str, Any]], Awaitable[None]]


class LiveResponse(Response):
    """Runs `work` and sends what it says."""

    media_type = "application/jsonl"

    def __init__(self, work: Callable[[Say], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def say(document: dict[str, Any]) -> None:
            line = json.dumps(document).encode() + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            try:
                await self._work(say)
                await say({"done": True})
            except P2PError as exc:
                await say(_said(exc))
            except BaseExceptionGroup as group:
                errors, rest = group.split(P2PError)
                if rest is not None or errors is None:
                    raise
                leaf: BaseException = errors
                while isinstance(leaf, BaseExceptionGroup):
                    leaf = leaf.exceptions[0]
                assert isinstance(leaf, P2PError)
                await say(_said(leaf))
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _said(exc: P2PError) -> dict[str, Any]:
    return {"error": redact(exc.message), "hint": redact(exc.hint), "exit_code": exc.exit_code}


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
