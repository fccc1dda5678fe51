"""What can a program on this machine have done about the cluster's k3s, and how is it asked?

Looking is for everyone who may read; ordering and stopping are for root. No request has a body: what is asked
stands in the query.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypedDict

from p2p_network.core.errors import UsageError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from p2p_bootstrap.api.app import Rights

    Handler = Callable[[Request], Awaitable[Response]]

MAX_WAVE = 64


class NodeVersionDoc(TypedDict):
    """One node. `k3s`: the version installed, "" if it says nothing; `phase`, `error`: of the last one."""

    hostname: str
    role: str
    k3s: str
    ready: bool
    phase: str
    error: str


class UpgradeDoc(TypedDict):
    """An upgrade: the one that is there, or one that was asked about.

    Attributes:
        version: "" if there never was one. state: "running", "back", "done", "stopped", "planned" or "".
        steps: what would happen from here, in sentences.
        forbidden: why it can't be ordered; "" if it can.
    """

    version: str
    state: str
    reason: str
    by: str
    steps: list[str]
    forbidden: str
    nodes: list[NodeVersionDoc]


class UpgradeWish(TypedDict):
    """What is ordered. `source`, `mirror`, `ca_file`, `public_key`, `sha256`: see `k3s install`."""

    version: str
    source: str
    mirror: str
    ca_file: str
    public_key: str
    sha256: str
    wave: int
    patience_s: float


class Upgrades(Protocol):
    """What the agent does about versions of k3s. Raises P2PError."""

    async def upgrade(self, version: str) -> UpgradeDoc:
        """Where the upgrade stands; with a version: what ordering it would do."""
        ...

    async def order_upgrade(self, wish: UpgradeWish) -> UpgradeDoc:
        """Begin; every node acts on its own turn."""
        ...

    async def stop_upgrade(self) -> UpgradeDoc:
        """No further node, and back where possible."""
        ...


def routes(upgrades: Upgrades, guarded: Callable[[Handler, Rights], Handler]) -> list[Route]:
    """The routes below ``/v1/k3s``. `guarded`: the API's own guard."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def text(request: Request, name: str) -> str:
        value = request.query_params.get(name, "")
        if len(value) > 4096 or not value.isprintable():
            raise UsageError(f"{name} is too long or not printable")
        return value

    def number(request: Request, name: str, default: float, low: float, high: float) -> float:
        raw = request.query_params.get(name)
        try:
            value = float(raw) if raw else default
        except ValueError:
            raise UsageError(f"{name} is no number") from None
        if not low <= value <= high:
            raise UsageError(f"{name} is from {low:g} to {high:g}")
        return value

    async def look(request: Request) -> Response:
        return JSONResponse(await upgrades.upgrade(text(request, "version")))

    async def order(request: Request) -> Response:
        wish = UpgradeWish(
            version=text(request, "version"),
            source=text(request, "source"),
            mirror=text(request, "mirror"),
            ca_file=text(request, "ca_file"),
            public_key=text(request, "public_key"),
            sha256=text(request, "sha256"),
            wave=int(number(request, "wave", 0, 0, MAX_WAVE)),
            patience_s=number(request, "patience_s", 300, 5, 3600),
        )
        return JSONResponse(await upgrades.order_upgrade(wish))

    async def stop(request: Request) -> Response:
        return JSONResponse(await upgrades.stop_upgrade())

    return [
        Route("/v1/k3s/upgrade", guarded(look, "read"), methods=["GET"]),
        Route("/v1/k3s/upgrade", guarded(order, "all"), methods=["POST"]),
        Route("/v1/k3s/upgrade/stop", guarded(stop, "all"), methods=["POST"]),
    ]
