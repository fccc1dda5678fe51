"""What can a program on this machine announce about nodes that will be away, and how is it asked?

Looking at what a drain would mean is for everyone who may read; to drain and to take it back are for root. No
request has a body: what is asked stands in the query.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypedDict

from p2p_network.core.errors import UsageError
from p2p_network.drains import MAX_REASON_CHARS, MAX_WINDOW_S, MIN_WINDOW_S

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from p2p_bootstrap.api.app import Rights

    Handler = Callable[[Request], Awaitable[Response]]


class DrainDoc(TypedDict):
    """A node's drain, or what one would mean.

    Attributes:
        drained: until when and why, in words; "" if it is not drained.
        steps: what follows, in sentences.
        danger: why the control plane would stop while it is away; "" if it would not.
    """

    peer: str
    hostname: str
    drained: str
    steps: list[str]
    danger: str


class Drains(Protocol):
    """What the agent does about drains. Raises P2PError."""

    def look(self, name: str, window_s: float) -> DrainDoc:
        """What draining this node for so long would mean."""
        ...

    async def drain(self, name: str, window_s: float, reason: str, *, force: bool) -> DrainDoc:
        """Announce that it will be away. Raises RoleError without `force` where that stops the cluster."""
        ...

    async def undrain(self, name: str) -> DrainDoc:
        """Take that back."""
        ...


def routes(answers: Drains, guarded: Callable[[Handler, Rights], Handler]) -> list[Route]:
    """``/v1/peers/NAME/drain`` and ``undrain``. `guarded`: the API's own guard."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def window(request: Request) -> float:
        raw = request.query_params.get("for_s", "3600")
        try:
            value = float(raw)
        except ValueError:
            raise UsageError("for_s is no number") from None
        if not (math.isfinite(value) and MIN_WINDOW_S <= value <= MAX_WINDOW_S):
            raise UsageError(
                f"a node is drained for {MIN_WINDOW_S:.0f} s to {MAX_WINDOW_S / 86400:.0f} days, not {raw} s",
                hint="who stays away longer should leave: kairos-p2p leave",
            )
        return value

    async def look(request: Request) -> Response:
        return JSONResponse(answers.look(request.path_params["name"], window(request)))

    async def drain(request: Request) -> Response:
        reason = request.query_params.get("reason", "")
        if len(reason) > MAX_REASON_CHARS or not reason.isprintable():
            raise UsageError(f"a reason has at most {MAX_REASON_CHARS} printable characters")
        force = request.query_params.get("force") == "1"
        name = request.path_params["name"]
        return JSONResponse(await answers.drain(name, window(request), reason, force=force))

    async def undrain(request: Request) -> Response:
        return JSONResponse(await answers.undrain(request.path_params["name"]))

    return [
        Route("/v1/peers/{name}/drain", guarded(look, "read"), methods=["GET"]),
        Route("/v1/peers/{name}/drain", guarded(drain, "all"), methods=["POST"]),
        Route("/v1/peers/{name}/undrain", guarded(undrain, "all"), methods=["POST"]),
    ]
