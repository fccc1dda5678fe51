"""What can a program on this machine have done about the cluster as a whole, and how is it asked?

Recoveries, twins, snapshots, backups: `Upkeep` is what the composition root implements, the documents are
what goes over the local socket, `routes` answers it. Reading a plan is for everyone who may read; what
changes something is for root. Like the rest of the API, no request has a body: what is asked stands in the
query.
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


class CandidateDoc(TypedDict):
    """A server that could bring the cluster back. `term`, `index`, `revision`: of its etcd, 0: unknown."""

    hostname: str
    peer: str
    term: int
    index: int
    revision: int
    k3s: str
    newest_snapshot: str
    snapshot_age_s: float | None


class PlanDoc(TypedDict):
    """What a recovery would do. `forbidden`: why it can't be done now, empty if it can."""

    survivor: str
    candidates: list[CandidateDoc]
    forbidden: list[str]
    losses: list[str]
    steps: list[str]
    needed: bool


class SnapshotDoc(TypedDict):
    """One snapshot. `held_by`: host names of the nodes that have a copy, sealed or k3s's own."""

    name: str
    digest: str
    size_bytes: int
    created: str
    age_s: float
    node: str
    held_by: list[str]


class DoneDoc(TypedDict):
    """What was done: one sentence."""

    done: str


class Upkeep(Protocol):
    """What the agent does about the cluster as a whole. Raises P2PError with what a person should read."""

    async def plan_recovery(self, lost: tuple[str, ...], survivor: str, snapshot: str) -> PlanDoc:
        """What a recovery would do."""
        ...

    async def recover(self, lost: tuple[str, ...], survivor: str, snapshot: str) -> DoneDoc:
        """Have it decided; it is carried out by every node by itself."""
        ...

    async def plan_resolution(self, keep: str) -> PlanDoc:
        """What keeping one of two clusters would do."""
        ...

    async def resolve(self, keep: str) -> DoneDoc:
        """Have it decided."""
        ...

    async def snapshots(self) -> list[SnapshotDoc]:
        """All snapshots in reach, newest first."""
        ...

    async def save_snapshot(self, name: str) -> DoneDoc:
        """Have etcd write one now, and copy it to others."""
        ...

    async def backup(self, path: str, passphrase_file: str) -> DoneDoc:
        """Write the whole cluster into one sealed file."""
        ...

    async def restore(self, path: str, passphrase_file: str, abandon: bool, lost: tuple[str, ...]) -> DoneDoc:
        """Begin the cluster of a backup on this mesh."""
        ...


def routes(upkeep: Upkeep, guarded: Callable[[Handler, Rights], Handler]) -> list[Route]:
    """The routes below ``/v1/cluster``. `guarded`: the API's own guard."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def words(request: Request, name: str) -> tuple[str, ...]:
        found = tuple(word for word in request.query_params.get(name, "").split(",") if word)
        if len(found) > 64 or any(len(word) > 253 for word in found):
            raise UsageError(f"{name} has too many or too long names")
        return found

    def text(request: Request, name: str) -> str:
        value = request.query_params.get(name, "")
        if len(value) > 4096 or not value.isprintable():
            raise UsageError(f"{name} is too long or not printable")
        return value

    async def plan_recovery(request: Request) -> Response:
        lost = words(request, "lost")
        return JSONResponse(
            await upkeep.plan_recovery(lost, text(request, "survivor"), text(request, "snapshot"))
        )

    async def recover(request: Request) -> Response:
        lost = words(request, "lost")
        return JSONResponse(await upkeep.recover(lost, text(request, "survivor"), text(request, "snapshot")))

    async def plan_resolution(request: Request) -> Response:
        return JSONResponse(await upkeep.plan_resolution(text(request, "keep")))

    async def resolve(request: Request) -> Response:
        return JSONResponse(await upkeep.resolve(text(request, "keep")))

    async def snapshots(request: Request) -> Response:
        return JSONResponse(await upkeep.snapshots())

    async def save_snapshot(request: Request) -> Response:
        return JSONResponse(await upkeep.save_snapshot(text(request, "name") or "on-demand"))

    async def backup(request: Request) -> Response:
        return JSONResponse(await upkeep.backup(text(request, "path"), text(request, "passphrase_file")))

    async def restore(request: Request) -> Response:
        abandon = text(request, "abandon") == "1"
        path, passphrase_file = text(request, "path"), text(request, "passphrase_file")
        return JSONResponse(await upkeep.restore(path, passphrase_file, abandon, words(request, "lost")))

    return [
        Route("/v1/cluster/recovery", guarded(plan_recovery, "read"), methods=["GET"]),
        Route("/v1/cluster/recovery", guarded(recover, "all"), methods=["POST"]),
        Route("/v1/cluster/resolution", guarded(plan_resolution, "read"), methods=["GET"]),
        Route("/v1/cluster/resolution", guarded(resolve, "all"), methods=["POST"]),
        Route("/v1/cluster/snapshots", guarded(snapshots, "read"), methods=["GET"]),
        Route("/v1/cluster/snapshots", guarded(save_snapshot, "all"), methods=["POST"]),
        Route("/v1/cluster/backup", guarded(backup, "all"), methods=["POST"]),
        Route("/v1/cluster/restore", guarded(restore, "all"), methods=["POST"]),
    ]
