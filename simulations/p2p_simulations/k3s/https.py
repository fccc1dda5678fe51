"""How do k3s's processes speak HTTPS with each other and with kubectl?

A small HTTP/1.1 server and client on asyncio streams. Small, because five of them run on two cores;
bounded, because anybody can connect. A server asks for a client certificate and passes on whom it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 8 << 20
IDLE_S = 120.0

REASONS = {
    200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 409: "Conflict", 410: "Gone", 413: "Payload Too Large",
    415: "Unsupported Media Type", 422: "Unprocessable Entity", 500: "Internal Server Error",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Header names are lower case. `user`, `groups`: of the client certificate, "" if none."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    remote: str
    user: str
    groups: tuple[str, ...]

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """`stream`, if given, is sent in chunks after the head instead of `body`."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    stream: AsyncIterator[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered to us."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)


class RequestFailed(Exception):
    """No answer was had. The text is that of Go's client."""


Handler = Callable[[Request], Awaitable[Response]]


def json_response(status: int, value: Any) -> Response:
    return Response(status, json.dumps(value, separators=(",", ":")).encode() + b"\n", "application/json")


def server_context(cert: str, key: str, client_ca: str, *, required: bool) -> ssl.SSLContext:
    """TLS for a listener; `required`: refuse clients without a certificate of `client_ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.load_verify_locations(client_ca)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client_context(
    ca: str | None = None, *, ca_data: str | None = None, cert: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """TLS for a client that trusts only this CA; without one, nothing is verified (as for `/cacerts`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca or ca_data:
        context.load_verify_locations(ca, None, ca_data)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        context.load_cert_chain(cert, key)
    return context


def _subject(writer: asyncio.StreamWriter) -> tuple[str, tuple[str, ...]]:
    certificate = writer.get_extra_info("peercert") or {}
    pairs = [pair for group in certificate.get("subject", ()) for pair in group]
    names = [value for name, value in pairs if name == "commonName"]
    return (names[0] if names else ""), tuple(value for name, value in pairs if name == "organizationName")


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | Response | None:
    """A request, or the answer to a bad one, or None at the end of the connection."""
    try:
        async with asyncio.timeout(IDLE_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, TimeoutError):
        return None
    except asyncio.LimitOverrunError:
        return Response(413, b"request header too large\n")
    try:
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        url = urlsplit(target)
    except ValueError:
        return Response(400, b"malformed request\n")
    if not 0 <= length <= MAX_BODY_BYTES or "transfer-encoding" in headers:
        return Response(413, b"request body too large or of unknown length\n")
    try:
        async with asyncio.timeout(IDLE_S):
            body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, TimeoutError):
        return None
    user, groups = _subject(writer)
    remote = (writer.get_extra_info("peername") or ("",))[0]
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    return Request(method, unquote(url.path), query, headers, body, remote, user, groups)


async def _send(writer: asyncio.StreamWriter, response: Response, *, close: bool) -> None:
    head = [
        f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Unknown')}",
        f"Content-Type: {response.content_type}",
        f"Connection: {'close' if close else 'keep-alive'}",
    ]
    if response.stream is None:
        head.append(f"Content-Length: {len(response.body)}")
        writer.write("\r\n".join([*head, "", ""]).encode() + response.body)
        await writer.drain()
        return
    head.append("Transfer-Encoding: chunked")
    writer.write("\r\n".join([*head, "", ""]).encode())
    async for chunk in response.stream:
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def serve(
    handler: Handler, hosts: list[str] | None, port: int, context: ssl.SSLContext | None
) -> asyncio.Server:
    """Listen. `hosts`: None for all addresses. Raises OSError if an address is taken or not ours."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            while True:
                request = await _read_request(reader, writer)
                if request is None:
                    break
                bad = isinstance(request, Response)
                response = request if isinstance(request, Response) else await handler(request)
                asked = not isinstance(request, Response) and request.headers.get("connection", "").lower()
                await _send(writer, response, close=bad or asked == "close")
                if bad or asked == "close":
                    break
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError, RuntimeError):
            writer.close()

    return await asyncio.start_server(converse, hosts, port, ssl=context, limit=MAX_HEAD_BYTES)


async def request(
    method: str,
    url: str,
    context: ssl.SSLContext | None,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout_s: float = 10.0,
) -> Reply:
    """One request on a connection of its own. Raises RequestFailed."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    shown = f'{method.capitalize()} "{url}"'
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(
                method, parts.path or "/", parts.query, host, port, context, headers or {}, body
            )
    except TimeoutError:
        text = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        raise RequestFailed(f"{shown}: {text}") from None
    except ssl.SSLCertVerificationError as exc:
        text = f"tls: failed to verify certificate: x509: {exc.verify_message}"
        raise RequestFailed(f"{shown}: {text}") from exc
    except socket.gaierror as exc:
        raise RequestFailed(f"{shown}: dial tcp: lookup {host}: no such host") from exc
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as exc:
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror else "EOF"
        reason = f"dial tcp {host}:{port}: connect: {text.lower()}"
        if isinstance(exc, ConnectionRefusedError):
            reason = f"dial tcp {host}:{port}: connect: connection refused"
        raise RequestFailed(f"{shown}: {reason}") from exc


async def _exchange(
    method: str,
    path: str,
    query: str,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    headers: Mapping[str, str],
    body: bytes,
) -> Reply:
    reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=MAX_HEAD_BYTES)
    try:
        target = path + (f"?{query}" if query else "")
        name = f"[{host}]" if ":" in host else host
        lines = [f"{method} {target} HTTP/1.1", f"Host: {name}:{port}", "Connection: close"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        answer = {}
        for line in head[1:-2]:
            key, _, value = line.partition(":")
            answer[key.lower()] = value.strip()
        if "content-length" in answer:
            length = int(answer["content-length"])
            if length > MAX_BODY_BYTES:
                raise ValueError("answer too large")
            return Reply(status, await reader.readexactly(length), answer)
        return Reply(
            status, await _read_all(reader, chunked="chunked" in answer.get("transfer-encoding", "")), answer
        )
    finally:
        writer.close()


async def _read_all(reader: asyncio.StreamReader, *, chunked: bool) -> bytes:
    out = bytearray()
    while len(out) <= MAX_BODY_BYTES:
        if chunked:
            size = int((await reader.readuntil(b"\r\n")).strip() or b"0", 16)
            piece = await reader.readexactly(size + 2)
            out += piece[:-2]
            if size == 0:
                return bytes(out)
        else:
            piece = await reader.read(1 << 16)
            if not piece:
                return bytes(out)
            out += piece
    raise ValueError("answer too large")
