"""How does an agent reach whichever server lives? A TCP balancer on 127.0.0.1:6444.

It starts with the server the agent was given, learns all others, remembers them on disk
(`agent/etc/k3s-agent-load-balancer.json`), and goes to the next when one does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from p2p_simulations.k3s import log
from p2p_simulations.k3s.process import write_file

CONNECT_S = 1.5
PIECE = 1 << 16


class Balancer:
    """`url` is the server of the agent's configuration; `port` the local one."""

    def __init__(self, url: str, state_file: Path, port: int) -> None:
        parts = urlsplit(url)
        self._default = f"{parts.hostname}:{parts.port or 443}"
        self._url = f"https://{self._default}"
        self._file = state_file
        self._port = port
        self._servers = [self._default]
        self._server: asyncio.Server | None = None
        self._current = ""
        try:
            remembered = json.loads(state_file.read_bytes())
            if remembered["ServerURL"] == self._url:
                self._servers = [str(s) for s in remembered["ServerAddresses"]][:64] or self._servers
        except (OSError, ValueError, KeyError, TypeError):
            self._write()

    @property
    def local_url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def servers(self) -> list[str]:
        return list(self._servers)

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        log.info(f"Running load balancer k3s-agent-load-balancer 127.0.0.1:{self._port} -> {self._servers}")

    def close(self) -> None:
        if self._server:
            self._server.close()

    def update(self, servers: list[str]) -> None:
        """Only these exist now."""
        wanted = sorted(set(servers))
        if wanted and wanted != sorted(self._servers):
            self._servers = wanted
            log.info(f"Updated load balancer k3s-agent-load-balancer server addresses -> {wanted}")
            self._write()

    def _write(self) -> None:
        document = {"ServerURL": self._url, "ServerAddresses": self._servers}
        write_file(self._file, json.dumps(document, indent=2))

    def _candidates(self) -> list[str]:
        """The one in use first, then the others, at last the configured one."""
        rest = [s for s in self._servers if s != self._current]
        first = [self._current] if self._current in self._servers else []
        return list(dict.fromkeys([*first, *rest, self._default]))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for server in self._candidates():
            host, _, port = server.rpartition(":")
            try:
                async with asyncio.timeout(CONNECT_S):
                    pair = await asyncio.open_connection(host.strip("[]"), int(port))
            except (OSError, TimeoutError, ValueError) as exc:
                log.warning(f"Failed to dial load balancer server {server}: {str(exc) or 'timed out'}")
                if self._current == server:
                    self._current = ""
                continue
            sock: Any = pair[1].get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)
            self._current = server
            return pair
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = await self._connect()
        if pair is None:
            writer.close()
            return
        await asyncio.gather(_copy(reader, pair[1]), _copy(pair[0], writer))
        # a server that took the connection but never answered is not worth keeping
        for end in (writer, pair[1]):
            end.close()

    def distrust(self) -> None:
        """The request in flight failed: prefer another server for the next."""
        if len(self._servers) > 1 and self._current:
            self._servers = [*(s for s in self._servers if s != self._current), self._current]
        self._current = ""


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
