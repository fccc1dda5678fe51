"""Which requests does the local API answer, and with what?

A starlette application over an `AgentService`. Who may ask what is decided here, from the caller that
`server` found out from the kernel: root and the agent's own user may do everything, members of the group
`kairos-p2p` may read, except the kubeconfig (it is a cluster-admin key). What only root may ask is noted by
`audit`, also if it was refused. Every answer that is not 2xx is
``{"error", "hint", "exit_code"}``. No request has a body, so none is accepted.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from p2p_bootstrap import __version__
from p2p_bootstrap.api.audit import AuditLog
from p2p_bootstrap.api.service import (
    GOALS,
    MAX_WAIT_S,
    AgentService,
    ErrorDoc,
    Goal,
    UnknownNode,
    VersionDoc,
    Wanted,
)
from p2p_bootstrap.api.upkeep import Upkeep
from p2p_bootstrap.api.upkeep import routes as cluster_routes
from p2p_bootstrap.redaction import redact
from p2p_network.core import log
from p2p_network.core.errors import NotPermitted, P2PError, TimedOut, UsageError

CALLER: Final = "kairos_p2p.caller"  # key of the ASGI scope under which `server` puts the caller
GROUP: Final = "kairos-p2p"
MAX_NAMED: Final = 200
MAX_SERVERS: Final = 15

Rights = Literal["all", "read", "none"]
Handler = Callable[[Request], Awaitable[Response]]
Part = Callable[[Callable[[Handler, Rights], Handler]], Sequence[Route]]

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a connection, as the kernel says.

    Attributes:
        uid, pid: of the process that connected, at that moment.
        rights: what it may do.
    """

    uid: int
    pid: int
    rights: Rights


def build_app(
    service: AgentService,
    audit: AuditLog | None = None,
    upkeep: Upkeep | None = None,
    parts: Sequence[Part] = (),
) -> Starlette:
    """The application. Its ASGI scopes must carry a `Caller` under `CALLER`.

    `audit`: where administrative requests are noted. `upkeep`: recoveries, snapshots, backups. `parts`: what
    else there is to ask; each is given the guard and makes its routes.
    """
    routes = _Routes(service)

    def _guarded(handler: Handler, needed: Rights) -> Handler:
        return guard(handler, needed, audit)

    return Starlette(
        routes=[
            Route("/v1/version", _guarded(routes.version, "read"), methods=["GET"]),
            Route("/v1/status", _guarded(routes.status, "read"), methods=["GET"]),
            Route("/v1/peers", _guarded(routes.peers, "read"), methods=["GET"]),
            Route("/v1/roles", _guarded(routes.roles, "read"), methods=["GET"]),
            Route("/v1/roles/{name:path}", _guarded(routes.role_of, "read"), methods=["GET"]),
            Route("/v1/events", _guarded(routes.events, "read"), methods=["GET"]),
            Route("/v1/wait", _guarded(routes.wait, "read"), methods=["GET"]),
            Route("/v1/kubeconfig", _guarded(routes.kubeconfig, "all"), methods=["GET"]),
            Route("/v1/kubeconfigs", _guarded(routes.kubeconfigs, "all"), methods=["GET"]),
            Route("/v1/regions", _guarded(routes.regions, "read"), methods=["GET"]),
            Route("/v1/regions/confirm", _guarded(routes.confirm_regions, "all"), methods=["POST"]),
            Route("/v1/plan", _guarded(routes.plan, "read"), methods=["GET"]),
            Route("/v1/apply", _guarded(routes.apply, "all"), methods=["POST"]),
            Route("/v1/invites", _guarded(routes.invites, "read"), methods=["GET"]),
            Route("/v1/invites", _guarded(routes.invite, "all"), methods=["POST"]),
            Route("/v1/invites/{id}/withdraw", _guarded(routes.withdraw, "all"), methods=["POST"]),
            Route("/v1/peers/{name}/revoke", _guarded(routes.revoke, "all"), methods=["POST"]),
            Route("/v1/rotate", _guarded(routes.rotate, "all"), methods=["POST"]),
            Route("/v1/leave", _guarded(routes.leave, "all"), methods=["POST"]),
            Route("/v1/stop", _guarded(routes.stop, "all"), methods=["POST"]),
            Route("/metrics", _guarded(routes.metrics, "read"), methods=["GET"]),
            *(cluster_routes(upkeep, _guarded) if upkeep is not None else ()),
            *(route for part in parts for route in part(_guarded)),
        ],
        exception_handlers={HTTPException: _no_such_request},
    )


class _Routes:
    """One method per request."""

    def __init__(self, service: AgentService) -> None:
        self._service = service

    async def version(self, request: Request) -> Response:
        return JSONResponse(
            VersionDoc(version=__version__, python=platform.python_version(), pid=os.getpid())
        )

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._service.status())

    async def peers(self, request: Request) -> Response:
        return JSONResponse(list(self._service.peers()))

    async def roles(self, request: Request) -> Response:
        return JSONResponse(list(self._service.roles()))

    async def role_of(self, request: Request) -> Response:
        return JSONResponse(self._service.role_of(request.path_params["name"]))

    async def events(self, request: Request) -> Response:
        since = _number(request, "since", 0, 2**53)
        follow = request.query_params.get("follow", "0")
        if follow not in ("0", "1"):
            raise UsageError(f"follow={follow} is neither 0 nor 1")
        lines = self._event_lines(int(since), follow == "1")
        return StreamingResponse(lines, media_type="application/jsonl")

    async def _event_lines(self, seq: int, follow: bool) -> AsyncIterator[str]:
        while True:
            for event in self._service.events_since(seq):
                yield json.dumps(event) + "\n"
                seq = event["seq"]
            if not follow:
                return
            await self._service.wait_events(seq)

    async def wait(self, request: Request) -> Response:
        asked = request.query_params.get("for", "")
        goal: Goal | None = next((goal for goal in GOALS if goal == asked), None)
        if goal is None:
            raise UsageError(f"cannot wait for {asked!r}", hint=f"one of: {', '.join(GOALS)}")
        timeout_s = _number(request, "timeout_s", 60.0, MAX_WAIT_S)
        answer: Response | None = None
        async with trio.open_nursery() as nursery:
            # a caller that went away (Ctrl-C) must not keep its wait, and its connection, for hours
            nursery.start_soon(_cancel_when_gone, request, nursery.cancel_scope)
            try:
                answer = JSONResponse(await self._service.wait_for(goal, timeout_s))
            except P2PError as exc:
                answer = _error(exc)
            nursery.cancel_scope.cancel()
        return answer or Response(status_code=499)

    async def kubeconfig(self, request: Request) -> Response:
        return Response(await self._service.kubeconfig(), media_type="application/yaml")

    async def kubeconfigs(self, request: Request) -> Response:
        return JSONResponse(await self._service.kubeconfigs())

    async def regions(self, request: Request) -> Response:
        return JSONResponse(await self._service.regions())

    async def confirm_regions(self, request: Request) -> Response:
        return JSONResponse(list(await self._service.confirm_regions()))

    async def plan(self, request: Request) -> Response:
        return JSONResponse(await self._service.plan(_wanted(request)))

    async def apply(self, request: Request) -> Response:
        version = request.query_params.get("version")
        return JSONResponse(await self._service.apply(_wanted(request), version))

    async def invites(self, request: Request) -> Response:
        return JSONResponse(list(self._service.invites()))

    async def invite(self, request: Request) -> Response:
        region = request.query_params.get("region", "")
        if len(region) > 63:
            raise UsageError("a region's name has at most 63 characters")
        invited = await self._service.invite(
            role=request.query_params.get("role", "any"),
            region=region,
            uses=int(_number(request, "uses", 1, 2**31)),
            ttl_s=_number(request, "ttl_s", 3600.0, 2**40),
            member_ttl_s=_number(request, "member_ttl_s", 0.0, 2**40),
        )
        return JSONResponse(invited)

    async def withdraw(self, request: Request) -> Response:
        await self._service.withdraw(request.path_params["id"])
        return JSONResponse({"withdrawn": True})

    async def revoke(self, request: Request) -> Response:
        reason = request.query_params.get("reason", "")[:200]
        return JSONResponse(await self._service.revoke(request.path_params["name"], reason))

    async def rotate(self, request: Request) -> Response:
        force = request.query_params.get("force") == "1"
        return JSONResponse(await self._service.rotate(force=force))

    async def leave(self, request: Request) -> Response:
        await self._service.leave()
        return JSONResponse({"left": True}, background=BackgroundTask(self._service.stop))

    async def stop(self, request: Request) -> Response:
        return JSONResponse({"stopping": True}, background=BackgroundTask(self._service.stop))

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._service.metrics_text(), media_type="text/plain; version=0.0.4")


def guard(handler: Handler, needed: Rights, audit: AuditLog | None) -> Handler:
    """`handler`, run only for a caller with the rights `needed`; its errors become error documents."""

    async def guarded(request: Request) -> Response:
        error = ""
        try:
            _check(request, needed)
            response = await handler(request)
        except P2PError as exc:
            response, error = _error(exc), redact(exc.message)
        except Exception as exc:  # a bug in one answer must not end the agent; it is logged whole
            logger.exception("api.request_failed")
            error = f"a bug: {type(exc).__name__}"
            response = JSONResponse(
                ErrorDoc(
                    error=f"the agent failed to answer {request.url.path}: {type(exc).__name__}",
                    hint="this is a bug; the agent's log has the details",
                    exit_code=1,
                ),
                status_code=500,
            )
        if needed == "all" and audit is not None:
            caller: Caller = request.scope[CALLER]
            audit.note(
                uid=caller.uid,
                pid=caller.pid,
                request=f"{request.method} {request.url.path}",
                parameters=dict(request.query_params),
                status=response.status_code,
                error=error,
            )
        return response

    return guarded


def _check(request: Request, needed: Rights) -> None:
    caller: Caller = request.scope[CALLER]
    if caller.rights == "all" or (caller.rights == "read" and needed == "read"):
        return
    if caller.rights == "read":
        what = f"{request.method} {request.url.path}"
        raise NotPermitted(
            f"user {caller.uid} may only read: {what} is for root", hint="run it as root, e.g. with sudo"
        )
    raise NotPermitted(
        f"user {caller.uid} may not talk to the agent",
        hint=f"run it as root, e.g. with sudo; for reading, join the group {GROUP}",
    )


def _error(exc: P2PError) -> JSONResponse:
    match exc:
        case UsageError():
            status = 400
        case UnknownNode():
            status = 404
        case NotPermitted():
            status = 403
        case TimedOut():
            status = 408
        case _:
            status = 409
    body = ErrorDoc(error=redact(exc.message), hint=redact(exc.hint), exit_code=exc.exit_code)
    return JSONResponse(body, status_code=status)


async def _no_such_request(request: Request, exc: Any) -> Response:
    return JSONResponse(
        ErrorDoc(
            error=f"the agent does not know the request {request.method} {request.url.path}",
            hint="the agent may be of another version than the command: kairos-p2p version",
            exit_code=1,
        ),
        status_code=exc.status_code,
    )


def _wanted(request: Request) -> Wanted:
    """``servers=5&role=n3=server&replace=n2``."""
    asked = request.query_params
    servers: int | None = None
    if "servers" in asked:
        servers = int(_number(request, "servers", 0, MAX_SERVERS))
        if servers < 1:
            raise UsageError("a cluster has at least one server")
    roles: dict[str, Literal["auto", "server", "agent"]] = {}
    for item in asked.getlist("role")[:MAX_NAMED]:
        node, _, role = item.rpartition("=")
        if not node or role not in ("auto", "server", "agent"):
            raise UsageError(f"role={item[:60]} is not NODE=server, NODE=agent or NODE=auto")
        roles[node] = role  # type: ignore[assignment]  # one of the three
    return Wanted(servers, roles, tuple(asked.getlist("replace")[:MAX_NAMED]))


def _number(request: Request, name: str, default: float, most: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise UsageError(f"{name}={text[:40]} is not a number from 0 to {most:.0f}")
    return number


async def _cancel_when_gone(request: Request, scope: trio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
