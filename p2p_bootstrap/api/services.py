"""What can a program on this machine ask about services and files, and have done?

`ServicesApi` is what the composition root implements, `routes` answers for it. A connection to a service, an
offered file and one that is fetched go on for as long as the caller stays; they answer line by line (`live`).
Reading is for everyone who may read; all else is for root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

from p2p_network.core.errors import UsageError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from p2p_bootstrap.api.app import Rights

    Handler = Callable[[Request], Awaitable[Response]]
    Say = Callable[[dict[str, Any]], Awaitable[None]]
    Work = Callable[[Say], Awaitable[None]]

MAX_TEXT_CHARS: Final = 4096


class ServiceDoc(TypedDict):
    """One row of ``GET /v1/services``. `port`: on the node's VPN address; `target`: where its program
    listens, on its own node only; `allowed`: by the access rules, from this node; `error`: why the node does
    not answer for it on its VPN address, "" if it does or has none."""

    name: str
    protocol: str
    port: int
    peer: str
    hostname: str
    region: str
    alive: bool
    allowed: bool
    target: str
    error: str


class ServicesApi(Protocol):
    """Services and files. Raises P2PError with what a person should read."""

    def services(self) -> list[ServiceDoc]:
        """Every service of every node."""
        ...

    async def expose(self, name: str, protocol: str, to: str, port: int) -> None:
        """Offer a service. `port`: on the VPN address, 0: that of the program."""
        ...

    async def remove(self, name: str, protocol: str) -> None:
        """Offer it no longer."""
        ...

    async def connect(self, name: str, protocol: str, listen: str, node: str) -> Work:
        """Listen, and carry each connection there."""
        ...

    async def socks(self, listen: str) -> Work:
        """A SOCKS5 proxy into the mesh."""
        ...

    async def forward(self, listen: str, to: str, protocol: str) -> Work:
        """A local port that leads to an address."""
        ...

    async def send_file(self, path: str, name: str, node: str) -> Work:
        """Offer a file."""
        ...

    async def get_file(self, name: str, path: str, node: str, *, force: bool) -> Work:
        """Fetch one."""
        ...


def routes(api: ServicesApi, guarded: Callable[[Handler, Rights], Handler]) -> list[Route]:
    """``/v1/services`` and ``/v1/files``. `guarded`: the API's own guard."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from p2p_bootstrap.api.live import LiveResponse

    def text(request: Request, name: str) -> str:
        value = request.query_params.get(name, "")
        if len(value) > MAX_TEXT_CHARS or not value.isprintable():
            raise UsageError(f"{name} is too long or not printable")
        return value

    def protocol(request: Request) -> str:
        value = text(request, "protocol") or "tcp"
        if value not in ("tcp", "udp"):
            raise UsageError(f"protocol={value[:20]} is neither tcp nor udp")
        return value

    def port(request: Request) -> int:
        value = text(request, "port") or "0"
        if not value.isdigit() or int(value) > 65535:
            raise UsageError(f"port={value[:20]} is no port")
        return int(value)

    async def services(request: Request) -> Response:
        return JSONResponse(api.services())

    async def expose(request: Request) -> Response:
        await api.expose(request.path_params["name"], protocol(request), text(request, "to"), port(request))
        return JSONResponse(api.services())

    async def remove(request: Request) -> Response:
        await api.remove(request.path_params["name"], protocol(request))
        return JSONResponse(api.services())

    async def connect(request: Request) -> Response:
        name = request.path_params["name"]
        work = await api.connect(name, protocol(request), text(request, "listen"), text(request, "node"))
        return LiveResponse(work)

    async def socks(request: Request) -> Response:
        return LiveResponse(await api.socks(text(request, "listen")))

    async def forward(request: Request) -> Response:
        work = await api.forward(text(request, "listen"), text(request, "to"), protocol(request))
        return LiveResponse(work)

    async def send_file(request: Request) -> Response:
        return LiveResponse(
            await api.send_file(text(request, "path"), text(request, "name"), text(request, "node"))
        )

    async def get_file(request: Request) -> Response:
        force = text(request, "force") == "1"
        return LiveResponse(
            await api.get_file(
                text(request, "name"), text(request, "path"), text(request, "node"), force=force
            )
        )

    return [
        Route("/v1/services", guarded(services, "read"), methods=["GET"]),
        Route("/v1/services/{name}/expose", guarded(expose, "all"), methods=["POST"]),
        Route("/v1/services/{name}/remove", guarded(remove, "all"), methods=["POST"]),
        Route("/v1/services/{name}/connect", guarded(connect, "all"), methods=["POST"]),
        Route("/v1/socks", guarded(socks, "all"), methods=["POST"]),
        Route("/v1/forward", guarded(forward, "all"), methods=["POST"]),
        Route("/v1/files/send", guarded(send_file, "all"), methods=["POST"]),
        Route("/v1/files/get", guarded(get_file, "all"), methods=["POST"]),
    ]
