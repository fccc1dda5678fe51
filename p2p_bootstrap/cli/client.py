"""How does a verb ask the agent?

HTTP/1.1 over the agent's unix socket, with the standard library alone: one connection per request. Every
way in which that can fail becomes one of our errors with its exit code, so a verb just calls and prints.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, urlencode

from p2p_bootstrap.api.service import (
    ConfirmedDoc,
    EventDoc,
    Goal,
    InvitedDoc,
    InviteDoc,
    KubeconfigsDoc,
    PeerDoc,
    PlanDoc,
    RegionsDoc,
    RevokedDoc,
    RoleRow,
    RotatedDoc,
    StatusDoc,
    VersionDoc,
    Wanted,
)
from p2p_network.core.errors import (
    DaemonNotRunning,
    NotPermitted,
    P2PError,
    TimedOut,
    UsageError,
)

T = TypeVar("T")

DEFAULT_SOCKET: Final = "/run/kairos-p2p/agent.sock"
SOCKET_VARIABLE: Final = "KAIROS_P2P_SOCKET"
REQUEST_TIMEOUT_S: Final = 15.0
LEAVE_TIMEOUT_S: Final = 120.0
ASKING_TIMEOUT_S: Final = 60.0  # for what the agent asks its peers
ROTATE_TIMEOUT_S: Final = 120.0
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024

_ERRORS: Final[dict[int, type[P2PError]]] = {
    kind.exit_code: kind for kind in (UsageError, DaemonNotRunning, TimedOut, NotPermitted)
}


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a unix socket."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class AgentClient:
    """The agent behind one socket. Every method raises DaemonNotRunning, NotPermitted, TimedOut, or the
    error that the agent answered with."""

    def __init__(self, path: Path | str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.path = Path(path)
        self._timeout_s = timeout_s

    def version(self) -> VersionDoc:
        """The agent's version."""
        return cast(VersionDoc, self._json("GET", "/v1/version"))

    def status(self) -> StatusDoc:
        """The state of this node."""
        return cast(StatusDoc, self._json("GET", "/v1/status"))

    def peers(self) -> list[PeerDoc]:
        """Every known peer."""
        return cast(list[PeerDoc], self._json("GET", "/v1/peers"))

    def roles(self) -> list[RoleRow]:
        """Every node's role."""
        return cast(list[RoleRow], self._json("GET", "/v1/roles"))

    def role_of(self, name: str) -> RoleRow:
        """The role of one node, by host name, peer id or the end of one."""
        return cast(RoleRow, self._json("GET", f"/v1/roles/{quote(name, safe='')}"))

    def events(self, since: int, *, follow: bool) -> Iterator[EventDoc]:
        """The kept events numbered above `since`; with `follow`, then each new one as it happens."""
        path = f"/v1/events?since={since}&follow={int(follow)}"
        connection, response = self._open("GET", path, None if follow else self._timeout_s)
        try:
            while line := self._spoken(lambda: response.readline(MAX_LINE_BYTES)):
                yield cast(EventDoc, self._decoded(line))
        finally:
            connection.close()
        if follow:
            raise DaemonNotRunning("the agent ended", hint="see whether it is back with: kairos-p2p status")

    def wait(self, goal: Goal, timeout_s: float) -> StatusDoc:
        """The status once `goal` is reached."""
        path = f"/v1/wait?for={goal}&timeout_s={timeout_s:.3f}"
        return cast(StatusDoc, self._json("GET", path, timeout_s=timeout_s + REQUEST_TIMEOUT_S))

    def kubeconfig(self) -> str:
        """The cluster-admin kubeconfig, YAML."""
        return self._request("GET", "/v1/kubeconfig", self._timeout_s).decode(errors="replace")

    def kubeconfigs(self) -> KubeconfigsDoc:
        """One kubeconfig for all clusters of the mesh."""
        return cast(KubeconfigsDoc, self._json("GET", "/v1/kubeconfigs", timeout_s=ASKING_TIMEOUT_S))

    def regions(self) -> RegionsDoc:
        """Who is where, and how far apart."""
        return cast(RegionsDoc, self._json("GET", "/v1/regions", timeout_s=ASKING_TIMEOUT_S))

    def confirm_regions(self) -> list[ConfirmedDoc]:
        """Make the inferred regions durable."""
        found = self._json("POST", "/v1/regions/confirm", timeout_s=LEAVE_TIMEOUT_S)
        return cast(list[ConfirmedDoc], found)

    def plan(self, wanted: Wanted) -> PlanDoc:
        """The declaration, changed like this, and the steps there."""
        return cast(PlanDoc, self._json("GET", f"/v1/plan?{_query(wanted)}"))

    def apply(self, wanted: Wanted, version: str | None) -> PlanDoc:
        """Change the declaration, if it is still of this version."""
        more = "" if version is None else f"&version={quote(version, safe='')}"
        return cast(PlanDoc, self._json("POST", f"/v1/apply?{_query(wanted)}{more}"))

    def revoke(self, name: str, reason: str) -> RevokedDoc:
        """Put a node out of the mesh."""
        path = f"/v1/peers/{quote(name, safe='')}/revoke?{urlencode({'reason': reason})}"
        return cast(RevokedDoc, self._json("POST", path))

    def invite(self, *, role: str, region: str, uses: int, ttl_s: float, member_ttl_s: float) -> InvitedDoc:
        """A new join token."""
        query = {"role": role, "region": region, "uses": uses, "ttl_s": ttl_s, "member_ttl_s": member_ttl_s}
        return cast(InvitedDoc, self._json("POST", f"/v1/invites?{urlencode(query)}"))

    def invites(self) -> list[InviteDoc]:
        """All invitations."""
        return cast(list[InviteDoc], self._json("GET", "/v1/invites"))

    def withdraw(self, invite: str) -> None:
        """Make an invitation void."""
        self._json("POST", f"/v1/invites/{quote(invite, safe='')}/withdraw")

    def rotate(self, *, force: bool = False) -> RotatedDoc:
        """Move all members to new keys; the new network token."""
        path = f"/v1/rotate?force={int(force)}"
        return cast(RotatedDoc, self._json("POST", path, timeout_s=ROTATE_TIMEOUT_S))

    def leave(self) -> None:
        """Take this node out of its mesh; the agent ends."""
        self._json("POST", "/v1/leave", timeout_s=LEAVE_TIMEOUT_S)

    def stop(self) -> None:
        """End the agent; packets and k3s go on."""
        self._json("POST", "/v1/stop")

    def call(self, method: str, path: str, *, timeout_s: float) -> Any:
        """The JSON that the agent answers to a request of a verb of its own."""
        return self._json(method, path, timeout_s=timeout_s)

    def live(self, method: str, path: str) -> Iterator[dict[str, Any]]:
        """What the agent says line by line, for as long as it and this caller stay. Raises what it says last,
        if that is an error."""
        connection, response = self._open(method, path, None)
        try:
            while line := self._spoken(lambda: response.readline(MAX_LINE_BYTES)):
                document = self._decoded(line)
                if "error" in document:
                    kind = _ERRORS.get(document["exit_code"], P2PError)
                    raise kind(str(document["error"]), hint=str(document["hint"]))
                if "done" in document:
                    return
                yield document
            raise DaemonNotRunning("the agent ended", hint="see whether it is back with: kairos-p2p status")
        finally:
            connection.close()

    def _json(self, method: str, path: str, *, timeout_s: float | None = None) -> Any:
        return self._decoded(self._request(method, path, timeout_s or self._timeout_s))

    def _request(self, method: str, path: str, timeout_s: float) -> bytes:
        connection, response = self._open(method, path, timeout_s)
        try:
            body = self._spoken(lambda: response.read(MAX_ANSWER_BYTES + 1))
        finally:
            connection.close()
        if len(body) > MAX_ANSWER_BYTES:
            raise P2PError(f"the agent's answer to {path} is larger than {MAX_ANSWER_BYTES} bytes")
        return body

    def _open(
        self, method: str, path: str, timeout_s: float | None
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, timeout_s)
        try:
            connection.connect()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise _not_running(self.path, "does not exist") from exc
        except ConnectionRefusedError as exc:
            raise _not_running(self.path, "was left by an agent that is gone") from exc
        except PermissionError as exc:
            raise NotPermitted(
                f"user {os.geteuid()} may not talk to the agent on {self.path}",
                hint="run it as root, e.g. with sudo; for reading, join the group kairos-p2p",
            ) from exc
        except TimeoutError as exc:
            raise TimedOut(f"the agent on {self.path} does not take connections") from exc
        except OSError as exc:
            raise P2PError(
                f"{self.path} is no agent's socket: {exc.strerror or exc}",
                hint=f"name the socket with --socket or {SOCKET_VARIABLE}",
            ) from exc

        def exchange() -> http.client.HTTPResponse:
            connection.request(method, path, headers={"Connection": "close"})
            return connection.getresponse()

        try:
            response = self._spoken(exchange)
            if response.status != 200:
                raise self._refusal(response, path)
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _spoken(self, exchange: Callable[[], T]) -> T:
        """The result of one exchange on an open connection, its failures named."""
        try:
            return exchange()
        except TimeoutError as exc:
            raise TimedOut(
                f"the agent on {self.path} takes connections but does not answer",
                hint="look at its log, or restart it",
            ) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            # it ended while it answered; ValueError: json, from an answer that was cut
            raise DaemonNotRunning(
                f"the agent on {self.path} broke off its answer: {type(exc).__name__}",
                hint="see whether it is back with: kairos-p2p status",
            ) from exc

    def _decoded(self, text: bytes) -> Any:
        return self._spoken(lambda: json.loads(text))

    def _refusal(self, response: http.client.HTTPResponse, path: str) -> P2PError:
        """The error that the agent answered with."""
        body = self._spoken(lambda: response.read(MAX_LINE_BYTES))
        try:
            document = json.loads(body)
            message, hint = str(document["error"]), str(document["hint"])
            kind = _ERRORS.get(document["exit_code"], P2PError)
        except (ValueError, KeyError, TypeError):
            message, hint, kind = f"it answered {path} with {response.status} {response.reason}", "", P2PError
            message = f"{self.path} does not speak like an agent: {message}"
        return kind(message, hint=hint)


def _query(wanted: Wanted) -> str:
    pairs = [("servers", str(wanted.servers))] if wanted.servers is not None else []
    pairs += [("role", f"{node}={role}") for node, role in wanted.roles.items()]
    pairs += [("replace", node) for node in wanted.replace]
    return urlencode(pairs)


def _not_running(path: Path, why: str) -> DaemonNotRunning:
    named = "" if os.fspath(path) == DEFAULT_SOCKET else f" --socket {path}"
    return DaemonNotRunning(
        f"no agent is running: {path} {why}",
        hint="make this machine a node with: kairos-p2p join --token-file FILE"
        if not named
        else f"start one with: kairos-p2p agent --cloud-config FILE{named}",
    )
