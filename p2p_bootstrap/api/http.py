"""How is one request read from a connection, and its answer sent?

HTTP/1.1 by h11 between a trio stream and an ASGI application, one request a connection: local callers need
no more, and nothing of one request can leak into the next. Everything a caller can stretch is bounded: the
time for the request, its size, the time that a piece of the answer may wait to be read. No other protocol
can be switched to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import h11
import trio
from starlette.types import ASGIApp, Message, Scope

from p2p_bootstrap.api.service import ErrorDoc
from p2p_network.core import log

MAX_HEADER_BYTES: Final = 16 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 4096

logger = log.get(__name__)


class ClientGone(OSError):
    """The caller closed the connection or stopped reading."""


async def serve_connection(
    stream: trio.SocketStream, app: ASGIApp, extra: Mapping[str, Any], *, refusal: str = ""
) -> None:
    """Answer the one request of a connection and close it. Raises nothing but cancellation.

    Args:
        extra: put into the ASGI scope as it is.
        refusal: if there is one, the request is answered with it (503) and `app` never sees it.
    """
    exchange = _Exchange(stream)
    try:
        async with stream:
            try:
                with trio.fail_after(REQUEST_TIMEOUT_S):
                    request = await exchange.read_request()
            except h11.RemoteProtocolError as exc:
                await exchange.refuse(exc.error_status_hint, "this is no HTTP request")
            except trio.TooSlowError:
                await exchange.refuse(408, f"no whole request came within {REQUEST_TIMEOUT_S:.0f} s")
            else:
                if refusal:
                    await exchange.refuse(503, refusal)
                elif _has_body(request):
                    await exchange.refuse(413, "the agent's API takes no request bodies")
                else:
                    await exchange.run(app, _scope(request, extra))
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the caller went away: nobody is left to tell
    except Exception:  # a bug of the application's: one connection, not the agent
        logger.exception("api.connection_failed")


class _Exchange:
    """One request and its answer on a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._gone = trio.Event()
        self._method = b""

    async def read_request(self) -> h11.Request:
        """The request's head. Raises h11.RemoteProtocolError, ClientGone."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(_CHUNK_BYTES))
        if not isinstance(event, h11.Request):
            raise ClientGone("closed before it asked")
        self._method = event.method
        return event

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the application answer, and tell it if the caller goes away meanwhile."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await app(scope, self._receive, self._send)
                nursery.cancel_scope.cancel()
        except* ClientGone:
            pass  # nobody is left to tell; no bug of ours

    async def refuse(self, status: int, error: str) -> None:
        """Answer with an error document."""
        body = json.dumps(ErrorDoc(error=error, hint="", exit_code=1)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _watch(self) -> None:
        """Read on until the caller closes; what else it sends is nobody's business."""
        try:
            while await self._stream.receive_some(_CHUNK_BYTES):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._gone.set()

    async def _receive(self) -> Message:
        # starlette asks once for the (empty) body and from then on whether the caller is still there
        if self._http.their_state is h11.SEND_BODY:
            self._http.next_event()
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            await self._write(h11.Response(status_code=status, headers=headers, reason=reason))
            return
        body = message.get("body", b"")
        if body and self._method != b"HEAD":
            await self._write(h11.Data(data=body))
        if not message.get("more_body", False):
            await self._write(h11.EndOfMessage())

    async def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if not data:
            return
        try:
            with trio.fail_after(SEND_TIMEOUT_S):
                await self._stream.send_all(data)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ClientGone("does not read its answer") from exc


def _has_body(request: h11.Request) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in request.headers
    )


def _scope(request: h11.Request, extra: Mapping[str, Any]) -> Scope:
    path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version.decode("ascii"),
        "method": request.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name, value) for name, value in request.headers],
        "client": None,
        "server": None,
        **extra,
    }
