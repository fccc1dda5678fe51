"""How does the core become a member of a cluster: with a disk, a clock, peers and clients?

The adapter of `raft.py`: executes its effects in order (fsync before send), keeps its timer, carries
its messages (`peers.py`), and lets any member take writes and linearizable reads by passing them on to the
leader over port 2379. On the leader it also promotes learners and removes members whose Node was deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2p_simulations.k3s import https, log, process, raft, timing
from p2p_simulations.k3s.errors import K3sError, Unavailable
from p2p_simulations.k3s.peers import Peers
from p2p_simulations.k3s.state import Object, Outcome, State
from p2p_simulations.k3s.wal import Wal

TIMED_OUT = "etcdserver: request timed out"
TOO_MANY_LEARNERS = "etcdserver: too many learner members in cluster"
UNHEALTHY = "etcdserver: unhealthy cluster"
NOT_ENOUGH = "etcdserver: re-configuration failed due to not enough started members"
SNAPSHOT_LINES = 4000


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of certificates below `server/tls`."""

    tls: Path

    def peer_context(self, *, server: bool) -> ssl.SSLContext:
        return self._context("peer-server-client", "peer-ca", server=server)

    def client_context(self) -> ssl.SSLContext:
        return self._context("client", "server-ca", server=False)

    def server_context(self) -> ssl.SSLContext:
        return self._context("server-client", "server-ca", server=True)

    def _context(self, own: str, ca: str, *, server: bool) -> ssl.SSLContext:
        folder = self.tls / "etcd"
        pair = (str(folder / f"{own}.crt"), str(folder / f"{own}.key"))
        if server:
            return https.server_context(*pair, str(folder / f"{ca}.crt"), required=True)
        return https.client_context(str(folder / f"{ca}.crt"), cert=pair[0], key=pair[1])


class Etcd:
    """One member.

    Args:
        name: of this member: node name, hyphen, 8 hex digits.
        address: where other members reach it.
        removed: called once when the cluster has removed this member.
    """

    def __init__(
        self,
        *,
        wal: Wal,
        name: str,
        address: str,
        files: Files,
        heartbeat_s: float,
        election_s: float,
        removed: Callable[[], None],
    ) -> None:
        self.name = name
        self.address = address
        host = f"[{address}]" if ":" in address else address
        self.peer_url, self.client_url = f"https://{host}:2380", f"https://{host}:2379"
        self._wal = wal
        self._files = files
        self._loop = asyncio.get_running_loop()
        self._removed = removed
        self._election_s = election_s
        self._state = State.load(wal.saved.snapshot.data)
        self._core = raft.Raft(
            self_id=wal.member_id,
            saved=wal.saved,
            now=self._loop.time(),
            heartbeat_s=heartbeat_s,
            election_s=election_s,
            jitter=random.random,
        )
        self._peers = Peers(
            self_id=wal.member_id,
            self_url=self.peer_url,
            context=files.peer_context(server=False),
            silence_s=max(1.0, 2 * election_s),
            received=lambda sender, message: self._step(raft.Received(sender, message)),
            removed=lambda member: member in self._core.config.removed,
            expelled=self._leave,
        )
        self._asks: dict[int, asyncio.Future[Any]] = {}
        self._next_ask = 0
        self._pending: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        self._pulse: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._client_server: asyncio.Server | None = None
        self._gateway_server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._active_since: dict[int, float] = {}
        self.stopped = False

    # ---- life

    async def start(self) -> None:
        """Listen and take part. Raises K3sError if a port is taken or the address is not ours."""
        hosts = ["127.0.0.1"] if self.address == "127.0.0.1" else ["127.0.0.1", self.address]
        try:
            await self._peers.listen(hosts, self._files.peer_context(server=True))
            self._client_server = await https.serve(self._rpc, hosts, 2379, self._files.server_context())
            self._gateway_server = await https.serve(
                self._gateway, ["127.0.0.1"], 2382, self._files.server_context()
            )
        except OSError as exc:
            raise K3sError(f"listen tcp {self.address}:2380: bind: {exc.strerror}") from exc
        self._applied_config()
        self._step(raft.Ticked())
        task = self._loop.create_task(self._manage())
        task.add_done_callback(process.die_of_bug)
        self._tasks.append(task)

    def stop(self) -> None:
        if self.stopped:
            return
        self.stopped = True
        for task in self._tasks:
            task.cancel()
        if self._timer:
            self._timer.cancel()
        for server in (self._client_server, self._gateway_server):
            if server:
                server.close()
        self._peers.close()
        self._wal.close()
        for future in [*self._asks.values(), *(future for _, future in self._pending.values())]:
            if not future.done():
                future.set_exception(Unavailable("etcdserver: server stopped"))

    def _leave(self) -> None:
        if not self.stopped:
            self.stop()
            self._removed()

    # ---- the core

    def _step(self, event: raft.Event) -> None:
        if self.stopped:
            return
        decision = self._core.step(self._loop.time(), event)
        saves: list[raft.SaveVote | raft.SaveEntries | raft.SaveSnapshot] = []
        for effect in decision.effects:
            if isinstance(effect, raft.SaveVote | raft.SaveEntries | raft.SaveSnapshot):
                saves.append(effect)
                continue
            self._save(saves)
            saves = []
            self._execute(effect)
        self._save(saves)
        if decision.effects:
            self._applied_config()
        if decision.reason:
            log.info(f"raft: member {self._core.self_id:x} {decision.reason}")
        if self._timer:
            self._timer.cancel()
        wake_at = self._core.wake_at()
        if wake_at is not None:
            self._timer = self._loop.call_at(wake_at, self._step, raft.Ticked())
        if self._wal.lines > SNAPSHOT_LINES and self._core.commit > self._core.snapshot.index:
            self._step(raft.StateSaved(self._core.commit, self._state.dump()))

    def _save(self, saves: list[raft.SaveVote | raft.SaveEntries | raft.SaveSnapshot]) -> None:
        try:
            self._wal.save(saves)
        except OSError as exc:  # as etcd: a member that cannot remember must not go on
            log.fatal(f"etcd: failed to save to WAL: {exc}")
            os._exit(1)

    def _execute(self, effect: raft.Effect) -> None:
        match effect:
            case raft.Send(to, message):
                self._peers.send(to, message)
            case raft.Apply(entries):
                for entry in entries:
                    self._apply(entry)
                self._wake()
            case raft.Restore(snapshot):
                self._state = State.load(snapshot.data)
                self._wake()
            case raft.Accepted(ask, index, term):
                self._pending[index] = (term, self._asks.pop(ask))
            case raft.Refused(ask, why):
                future = self._asks.pop(ask)
                if not future.done():
                    future.set_exception(Unavailable(why))
            case raft.ReadConfirmed(ask, index):
                future = self._asks.pop(ask)
                if not future.done():
                    future.set_result(index)

    def _apply(self, entry: raft.Entry) -> None:
        result: Any = None
        if entry.config is not None:
            self._state.revision = entry.index
            self._state.forget_removals(frozenset(m.name for m in entry.config.members))
        elif entry.data:
            result = self._state.apply(entry.index, json.loads(entry.data))
        term, future = self._pending.pop(entry.index, (0, None))
        if future is not None and not future.done():
            if term == entry.term:
                future.set_result((entry.index, result))
            else:
                future.set_exception(Unavailable(raft.LEADER_CHANGED))

    def _applied_config(self) -> None:
        config = self._core.config
        self._peers.know({m.id: m.peer_url for m in config.members})
        decided = all(e.config is None or e.index <= self._core.commit for e in self._core.entries[-8:])
        if decided and self._core.self_id in config.removed:
            self._loop.call_soon(self._leave)

    def _wake(self) -> None:
        pulse, self._pulse = self._pulse, self._loop.create_future()
        if not pulse.done():
            pulse.set_result(None)

    async def changed(self) -> None:
        await asyncio.wait((self._pulse,), timeout=1.0)

    async def _ask(self, event: Callable[[int], raft.Event]) -> Any:
        if self.stopped:
            raise Unavailable("etcdserver: server stopped")
        self._next_ask += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._asks[self._next_ask] = future
        self._step(event(self._next_ask))
        try:
            async with asyncio.timeout(timing.REQUEST_S):
                return await future
        except TimeoutError:
            raise Unavailable(TIMED_OUT) from None

    # ---- what the API uses

    @property
    def state(self) -> State:
        return self._state

    def members(self) -> tuple[raft.Member, ...]:
        return self._core.config.members

    def leads(self) -> bool:
        return self._core.role == "leader" and not self.stopped

    def fault(self) -> str:
        if self.stopped:
            return "etcdserver: server stopped"
        return "" if self._core.has_quorum() else raft.NO_LEADER

    async def propose(self, command: Object) -> Outcome:
        data = json.dumps(command, separators=(",", ":"))
        if self._core.role == "leader":
            _, outcome = await self._ask(lambda ask: raft.Proposed(ask, data))
            assert isinstance(outcome, Outcome)
            return outcome
        answer = await self._at_leader("/propose", data.encode())
        await self._applied(answer["index"])
        return Outcome(answer["verdict"], answer["object"])

    async def barrier(self) -> None:
        if self._core.role == "leader":
            index = await self._ask(raft.ReadAsked)
        else:
            index = (await self._at_leader("/read", b""))["index"]
        await self._applied(index)

    async def _applied(self, index: int) -> None:
        deadline = self._loop.time() + timing.REQUEST_S
        while self._core.commit < index:
            if self.stopped or self._loop.time() > deadline:
                raise Unavailable(TIMED_OUT)
            await self.changed()

    async def _at_leader(self, path: str, body: bytes) -> Any:
        leader = next((m for m in self.members() if m.id == self._core.leader), None)
        if leader is None or not leader.client_url or self.stopped:
            raise Unavailable(raft.NO_LEADER)
        return await call(leader.client_url, path, body, self._files.client_context())

    # ---- port 2382, etcd's JSON gateway; numbers are text there

    async def _gateway(self, request: https.Request) -> https.Response:
        if request.path != "/v3/maintenance/status" or request.method != "POST":
            return https.json_response(404, {"code": 5, "message": "Not Found"})
        core = self._core
        answer: dict[str, Any] = {
            "header": {"member_id": str(core.self_id), "revision": str(self._state.revision)},
            "version": "3.6.0",
            "leader": str(core.leader or 0),
            "raftIndex": str(core.last_index),
            "raftTerm": str(core.term),
            "raftAppliedIndex": str(core.commit),
        }
        if not core.has_quorum():
            answer["errors"] = [raft.NO_LEADER]
        return https.json_response(200, answer)

    # ---- port 2379

    async def _rpc(self, request: https.Request) -> https.Response:
        try:
            return https.json_response(200, await self._answer(request))
        except Unavailable as exc:
            return https.json_response(503, {"error": str(exc)})
        except (ValueError, KeyError, TypeError) as exc:
            return https.json_response(400, {"error": f"bad request: {exc}"})

    async def _answer(self, request: https.Request) -> Any:
        match request.path:
            case "/status":
                return self.status()
            case "/propose":
                command = request.json()
                data = json.dumps(command, separators=(",", ":"))
                index, outcome = await self._ask(lambda ask: raft.Proposed(ask, data))
                return {"index": index, "verdict": outcome.verdict, "object": outcome.object}
            case "/read":
                return {"index": await self._ask(raft.ReadAsked)}
            case "/members/add":
                if not self.leads():
                    return await self._at_leader(request.path, request.body)
                return {"id": await self._add(str(request.json()["peer_url"]))}
            case "/members/publish":
                wanted = request.json()
                await self._change_member(
                    wanted["id"], lambda m: replace(m, name=wanted["name"], client_url=wanted["client_url"])
                )
                return {}
            case _:
                raise Unavailable(f"unknown method {request.path}")

    def status(self) -> dict[str, Any]:
        core = self._core
        learner = not core.is_voter
        return {"id": core.self_id, "leader": core.leader or 0, "applied": core.commit, "learner": learner}

    # ---- membership

    def test(self) -> str:
        """Why this member is not ready, in k3s's words; "" if it is a voter with a leader."""
        core = self._core
        if self.stopped:
            return "failed to get etcd status: context deadline exceeded"
        own = next((m for m in core.config.members if m.id == core.self_id), None)
        if own is not None and (own.peer_url != self.peer_url or own.name not in ("", self.name)):
            found = " ".join(f"{m.name}={m.peer_url}" for m in core.config.members)
            wanted = f"{self.name}={self.peer_url}"
            return f"this server is not a member of the etcd cluster. Found [{found}], expect: {wanted}"
        if own is None or own.learner:
            return "this server has not yet been promoted from learner to voting member"
        return "" if core.has_quorum() and own.name else raft.NO_LEADER

    async def _add(self, peer_url: str) -> int:
        """A new learner's id, as soon as a change that is under way is decided. Raises Unavailable."""
        deadline = self._loop.time() + timing.REQUEST_S
        while True:
            try:
                return await self._try_to_add(peer_url)
            except Unavailable as exc:
                if str(exc) != raft.CHANGE_UNDER_WAY or self._loop.time() > deadline:
                    raise
                await self.changed()

    async def _try_to_add(self, peer_url: str) -> int:
        config = self._core.config
        known = next((m for m in config.members if m.peer_url == peer_url), None)
        if known is not None:
            raise Unavailable("etcdserver: Peer URLs already exists")
        if any(m.learner for m in config.members):
            raise Unavailable(TOO_MANY_LEARNERS)
        if not all(self._connected(member) for member in config.voters):
            raise Unavailable(UNHEALTHY)
        digest = hashlib.sha256(f"{peer_url} {self._core.last_index} {self._core.term}".encode()).digest()
        member = raft.Member(int.from_bytes(digest[:6], "big"), "", peer_url, "", True)
        await self._propose_config(replace(config, members=(*config.members, member)))
        return member.id

    def _connected(self, member: int) -> bool:
        since = self._active_since.get(member)
        return member == self._core.self_id or (
            since is not None and self._loop.time() - since >= timing.HEALTH_S
        )

    async def _propose_config(self, config: raft.Config) -> None:
        await self._ask(lambda ask: raft.ConfigProposed(ask, config))

    async def _change_member(self, member: int, change: Callable[[raft.Member], raft.Member]) -> None:
        config = self._core.config
        members = tuple(change(m) if m.id == member else m for m in config.members)
        await self._propose_config(replace(config, members=members))

    async def _remove(self, name: str) -> None:
        config = self._core.config
        gone = next((m for m in config.members if m.name == name), None)
        if gone is None:  # its Node outlived it, e.g. in a cluster that was reset
            return
        others = tuple(m for m in config.members if m.id != gone.id)
        alive = sum(self._connected(m) for m in config.voters if m != gone.id)
        if not gone.learner and 2 * alive <= len(config.voters - {gone.id}):
            raise Unavailable(NOT_ENOUGH)
        log.info(f"Removing name={name} id={gone.id} address={gone.peer_url} from etcd")
        await self._propose_config(raft.Config(others, (*config.removed, gone.id)))

    async def _manage(self) -> None:
        """Publish our own name; and, on the leader, keep the membership in order."""
        promote_at = 0.0
        while True:
            await asyncio.sleep(0.1)
            now = self._loop.time()
            members = self._core.config.members
            for member in members:
                if self._core.active(now, member.id):
                    self._active_since.setdefault(member.id, now)
                else:
                    self._active_since.pop(member.id, None)
            try:
                own = next((m for m in members if m.id == self._core.self_id), None)
                if own is not None and own.name != self.name and own.peer_url == self.peer_url:
                    wanted = {"id": own.id, "name": self.name, "client_url": self.client_url}
                    await self._at_leader("/members/publish", json.dumps(wanted).encode())
                if not self.leads():
                    continue
                for name in list(self._state.removals):
                    await self._remove(name)
                if now >= promote_at:
                    promote_at = now + timing.promotion_tick_s()
                    await self._promote()
            except Unavailable as exc:
                if str(exc) not in (raft.NO_LEADER, raft.CHANGE_UNDER_WAY, raft.LEADER_CHANGED):
                    log.warning(f"etcd membership: {exc}")
                await asyncio.sleep(0.2)

    async def _promote(self) -> None:
        for member in self._core.config.members:
            caught_up = self._core.match_of(member.id) >= 0.9 * self._core.last_index
            if member.learner and member.name and caught_up and self._connected(member.id):
                await self._change_member(member.id, lambda m: replace(m, learner=False))
                log.info(f"Promoted learner {member.name}")


async def call(client_url: str, path: str, body: bytes, context: ssl.SSLContext) -> Any:
    """One request to a member's port 2379. Raises Unavailable with its text."""
    try:
        reply = await https.request(
            "POST", client_url + path, context, body=body, timeout_s=timing.REQUEST_S + 1
        )
        answer = reply.json()
    except (https.RequestFailed, ValueError) as exc:
        raise Unavailable(str(exc)) from exc
    if reply.status != 200:
        raise Unavailable(str(answer.get("error", reply.status)))
    return answer
