"""What can a program on this machine ask about routes and access, and change?

Subnets and exits that nodes offer, the administrator's word on them, and the rules who may reach whom.
`Reach` is what the composition root implements, `routes` answers for it. Reading is for everyone who may
read; what changes something is for root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypedDict

from p2p_network.core.errors import UsageError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from p2p_bootstrap.api.app import Rights

    Handler = Callable[[Request], Awaitable[Response]]

MAX_ITEMS: Final = 256
MAX_ITEM_CHARS: Final = 253


class RouteDoc(TypedDict):
    """One row of ``GET /v1/routes``. `network`: CIDR, or "exit"; `reason`: of the state."""

    network: str
    peer: str
    hostname: str
    state: str
    reason: str


class DecidedDoc(TypedDict):
    """What is accepted of a node now."""

    peer: str
    networks: list[str]
    exit: bool


class InboundDoc(TypedDict):
    """One other node: whether it may begin to talk to this one, by which rule ("" if none fits), and how many
    of its packets were dropped for that."""

    peer: str
    hostname: str
    region: str
    role: str
    allowed: bool
    rule: str
    dropped: int


class AccessDoc(TypedDict):
    """``GET /v1/access``."""

    rules: list[str]
    inbound: list[InboundDoc]


class Reach(Protocol):
    """Routes and access. Raises P2PError with what a person should read."""

    def routes(self) -> list[RouteDoc]:
        """Every offer, and what became of it."""
        ...

    async def offer(self, networks: Sequence[str], *, exit: bool, withdraw: bool) -> None:
        """Offer to carry networks or an exit, or stop it."""
        ...

    async def decide(self, node: str, networks: Sequence[str], *, accept: bool) -> DecidedDoc:
        """The administrator's word."""
        ...

    async def choose_exit(self, node: str | None) -> None:
        """Where what goes to the internet leaves the mesh."""
        ...

    def access(self) -> AccessDoc:
        """The rules, and what they mean for this node."""
        ...

    async def set_rules(self, rules: Sequence[str]) -> AccessDoc:
        """Replace the rules."""
        ...


def routes(reach: Reach, guarded: Callable[[Handler, Rights], Handler]) -> list[Route]:
    """``/v1/routes`` and ``/v1/access``. `guarded`: the API's own guard."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def items(request: Request, name: str) -> list[str]:
        found = request.query_params.getlist(name)
        if len(found) > MAX_ITEMS or any(len(i) > MAX_ITEM_CHARS or not i.isprintable() for i in found):
            raise UsageError(f"{name}: too many, too long or not printable")
        return found

    def node(request: Request) -> str:
        found = items(request, "node")
        if len(found) != 1:
            raise UsageError("name one node")
        return found[0]

    async def list_routes(request: Request) -> Response:
        return JSONResponse(reach.routes())

    async def offer(request: Request) -> Response:
        is_exit = request.query_params.get("exit") == "1"
        await reach.offer(items(request, "network"), exit=is_exit, withdraw=False)
        return JSONResponse(reach.routes())

    async def withdraw(request: Request) -> Response:
        is_exit = request.query_params.get("exit") == "1"
        await reach.offer(items(request, "network"), exit=is_exit, withdraw=True)
        return JSONResponse(reach.routes())

    async def accept(request: Request) -> Response:
        return JSONResponse(await reach.decide(node(request), items(request, "network"), accept=True))

    async def refuse(request: Request) -> Response:
        return JSONResponse(await reach.decide(node(request), items(request, "network"), accept=False))

    async def choose_exit(request: Request) -> Response:
        await reach.choose_exit(node(request) if "node" in request.query_params else None)
        return JSONResponse(reach.routes())

    async def access(request: Request) -> Response:
        return JSONResponse(reach.access())

    async def set_rules(request: Request) -> Response:
        return JSONResponse(await reach.set_rules(items(request, "rule")))

    return [
        Route("/v1/routes", guarded(list_routes, "read"), methods=["GET"]),
        Route("/v1/routes/offer", guarded(offer, "all"), methods=["POST"]),
        Route("/v1/routes/withdraw", guarded(withdraw, "all"), methods=["POST"]),
        Route("/v1/routes/accept", guarded(accept, "all"), methods=["POST"]),
        Route("/v1/routes/refuse", guarded(refuse, "all"), methods=["POST"]),
        Route("/v1/routes/exit", guarded(choose_exit, "all"), methods=["POST"]),
        Route("/v1/access", guarded(access, "read"), methods=["GET"]),
        Route("/v1/access", guarded(set_rules, "all"), methods=["POST"]),
    ]
