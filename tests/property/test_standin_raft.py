"""Does the stand-in's etcd keep what it acknowledged, whatever is lost, delayed, repeated or killed?

The pure core runs in a small world of this file: messages in any order, crashes between any two effects,
restarts from exactly what was on the disk, members that come and go. Hypothesis chooses what happens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2p_simulations.k3s import raft
from p2p_simulations.k3s.raft import Config, Entry, Member, Raft, Saved, Snapshot

HEARTBEAT_S, ELECTION_S = 0.1, 0.5


def _member(number: int, *, learner: bool = False) -> Member:
    return Member(number, f"m{number}", f"https://{number}:2380", f"https://{number}:2379", learner)


@dataclass
class Disk:
    """What survives a crash: exactly the executed Save effects."""

    term: int = 0
    voted_for: int | None = None
    snapshot: Snapshot = field(default_factory=Snapshot)
    entries: list[Entry] = field(default_factory=list)

    def save(self, effect: raft.SaveVote | raft.SaveEntries | raft.SaveSnapshot) -> None:
        match effect:
            case raft.SaveVote(term, voted_for):
                assert term >= self.term, "terms only rise"
                assert term > self.term or self.voted_for in (None, voted_for), "one vote per term"
                self.term, self.voted_for = term, voted_for
            case raft.SaveEntries(entries):
                del self.entries[entries[0].index - self.snapshot.index - 1 :]
                self.entries.extend(entries)
            case raft.SaveSnapshot(snapshot, entries):
                self.snapshot, self.entries = snapshot, list(entries)


class World:
    """Members, their disks, and the messages between them."""

    def __init__(self, voters: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.disks: dict[int, Disk] = {}
        self.cores: dict[int, Raft] = {}
        self.applied: dict[int, list[Entry]] = {}
        self.messages: list[tuple[int, int, raft.Message]] = []
        self.cut: set[int] = set()
        self.halved = False
        self.decided: dict[int, Entry] = {}
        self.leaders: dict[int, int] = {}
        self.acknowledged: set[str] = set()
        self.pending: dict[tuple[int, int], int] = {}
        self.reads: dict[int, int] = {}
        self.asks = 0
        start = Snapshot(config=Config(tuple(_member(n) for n in range(1, voters + 1))))
        for number in range(1, voters + 1):
            self.disks[number] = Disk(snapshot=start)
            self.boot(number)

    def boot(self, number: int) -> None:
        disk = self.disks[number]
        self.cores[number] = Raft(
            self_id=number,
            saved=Saved(disk.term, disk.voted_for, disk.snapshot, tuple(disk.entries)),
            now=self.now,
            heartbeat_s=HEARTBEAT_S,
            election_s=ELECTION_S,
            jitter=self.random.random,
        )
        self.applied[number] = []

    def crash(self, number: int) -> None:
        self.cores.pop(number, None)
        self.pending = {key: value for key, value in self.pending.items() if key[0] != number}

    def step(self, number: int, event: raft.Event, *, die_after: int | None = None) -> None:
        core = self.cores.get(number)
        if core is None:
            return
        decision = core.step(self.now, event)
        if core.role == "leader":
            assert self.leaders.setdefault(core.term, number) == number, "two leaders in one term"
        for count, effect in enumerate(decision.effects):
            if die_after is not None and count >= die_after:
                self.crash(number)
                return
            self._execute(number, effect)

    def _execute(self, number: int, effect: raft.Effect) -> None:
        match effect:
            case raft.SaveVote() | raft.SaveEntries() | raft.SaveSnapshot():
                self.disks[number].save(effect)
            case raft.Send(to, message):
                if self.reaches(number, to):
                    self.messages.append((number, to, message))
            case raft.Apply(entries):
                for entry in entries:
                    assert self.decided.setdefault(entry.index, entry) == entry, "two histories"
                    self.applied[number].append(entry)
                    if self.pending.pop((number, entry.index), None) == entry.term and entry.data:
                        self.acknowledged.add(entry.data)
            case raft.Accepted(_, index, term):
                self.pending[number, index] = term
            case raft.ReadConfirmed(ask, index):
                assert index >= self.reads.pop(ask), "a read saw less than was acknowledged before it"
            case raft.Restore() | raft.Refused():
                pass

    def deliver(self, position: int, *, copy: bool, die_after: int | None = None) -> None:
        if not self.messages:
            return
        position %= len(self.messages)
        sender, to, message = self.messages[position] if copy else self.messages.pop(position)
        if self.reaches(sender, to):
            self.step(to, raft.Received(sender, message), die_after=die_after)

    def reaches(self, sender: int, to: int) -> bool:
        same_half = not self.halved or sender % 2 == to % 2
        return same_half and sender not in self.cut and to not in self.cut

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for number in sorted(self.cores):
            self.step(number, raft.Ticked())

    def leader(self) -> int | None:
        leading = [n for n, core in self.cores.items() if core.role == "leader"]
        return max(leading, key=lambda n: self.cores[n].term) if leading else None

    def write(self, number: int) -> None:
        self.asks += 1
        self.step(number, raft.Proposed(self.asks, f"write {self.asks}"))

    def read(self, number: int) -> None:
        self.asks += 1
        if number not in self.cores or self.cores[number].role != "leader":
            return
        known = [e.index for e in self.decided.values() if e.data in self.acknowledged]
        self.reads[self.asks] = max(known, default=0)
        self.step(number, raft.ReadAsked(self.asks))

    def calm(self, until: float = 8.0) -> None:
        """No more faults: deliver everything, let time pass."""
        self.cut.clear()
        self.halved = False
        for number in self.disks:
            if number not in self.cores:
                self.boot(number)
        deadline = self.now + until
        while self.now < deadline:
            for _ in range(len(self.messages)):
                self.deliver(0, copy=False)
            self.pass_time(0.1)

    def check_kept(self) -> None:
        written = {e.data for e in self.decided.values()}
        assert self.acknowledged <= written, "an acknowledged write is gone"


@dataclass
class Action:
    kind: str
    number: int
    amount: int


ACTIONS = st.lists(
    st.builds(
        Action,
        kind=st.sampled_from(
            ["deliver"] * 10 + ["time"] * 6 + ["write"] * 3
            + ["read"] * 3
            + ["copy", "drop", "die", "crash", "boot", "cut", "mend", "halve", "snapshot"]
            + ["grow", "promote", "shrink"]
        ),
        number=st.integers(1, 5),
        amount=st.integers(0, 40),
    ),
    min_size=40,
    max_size=160,
)  # fmt: skip


def _act(world: World, action: Action) -> None:
    number, amount = action.number, action.amount
    match action.kind:
        case "deliver":
            for _ in range(1 + amount % 8):
                world.deliver(amount, copy=False)
        case "copy":
            world.deliver(amount, copy=True)
        case "die":
            world.deliver(amount, copy=False, die_after=amount % 4)
        case "drop" if world.messages:
            world.messages.pop(amount % len(world.messages))
        case "time":
            world.pass_time(0.05 + amount / 60)
        case "write":
            world.write(world.leader() or number)
        case "read":
            world.read(number)
        case "crash":
            world.crash(number)
        case "boot" if number in world.disks and number not in world.cores:
            world.boot(number)
        case "cut":
            world.cut.add(number)
        case "mend":
            world.cut.discard(number)
        case "halve":
            world.halved = amount % 3 > 0
        case "snapshot" if number in world.cores:
            core = world.cores[number]
            world.step(number, raft.StateSaved(core.commit, f"state {core.commit}"))
        case "grow" | "promote" | "shrink":
            _change(world, action.kind, number)
        case _:
            pass


def _change(world: World, kind: str, number: int) -> None:
    leader = world.leader()
    if leader is None:
        return
    config = world.cores[leader].config
    members = config.members
    if (
        kind == "grow"
        and number not in config.ids
        and number not in config.removed
        and number not in world.disks
    ):
        world.disks[number] = Disk()
        world.boot(number)
        members = (*members, _member(number, learner=True))
    elif kind == "promote":
        core = world.cores[leader]
        members = tuple(
            replace(m, learner=m.learner and (m.id != number or core.match_of(m.id) < core.commit))
            for m in members
        )
    elif kind == "shrink" and len(config.voters - {number}) >= 2:
        members = tuple(m for m in members if m.id != number)
    gone = tuple(config.ids - {m.id for m in members})
    new = Config(members, (*config.removed, *gone))
    if new != config and len(new.voters ^ config.voters) <= 1:
        world.asks += 1
        world.step(leader, raft.ConfigProposed(world.asks, new))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), voters=st.sampled_from([1, 3, 3, 4]), actions=ACTIONS)
def test_one_history_and_no_acknowledged_write_lost(seed: int, voters: int, actions: list[Action]) -> None:
    world = World(voters, seed)
    for action in actions:
        _act(world, action)
    world.check_kept()
    world.calm()
    world.check_kept()
    leader = world.leader()
    assert leader is not None, "after all faults are mended there is a leader"
    before = len(world.acknowledged)
    world.write(leader)
    world.calm(until=2.0)
    assert len(world.acknowledged) > before, "and it can write"
    members = world.cores[leader].config.ids & world.cores.keys()
    assert {world.cores[n].commit for n in members} == {world.cores[leader].commit}, "and all hold all"


@given(seed=st.integers(0, 2**16), lost=st.integers(2, 3))
@settings(max_examples=25, deadline=None)
def test_a_minority_neither_writes_nor_believes_in_a_leader(seed: int, lost: int) -> None:
    world = World(3, seed)
    world.calm(until=5.0)
    for number in range(1, lost + 1):
        world.cut.add(number)
    known = set(world.acknowledged)
    for number in range(1, lost + 1):
        world.write(number)
    for _ in range(40):
        world.pass_time(0.1)
        for _ in range(len(world.messages)):
            world.deliver(0, copy=False)
    assert world.acknowledged == known
    for number in range(1, 4):
        assert not world.cores[number].has_quorum(), f"member {number} is cut off, or with a minority"


def test_a_single_voter_leads_at_once() -> None:
    world = World(1, 0)
    world.pass_time(0.0)
    world.write(1)
    assert world.acknowledged == {"write 1"}


def test_a_lagging_member_is_brought_up_by_a_snapshot() -> None:
    world = World(3, 1)
    world.calm(until=5.0)
    world.crash(3)
    leader = world.leader()
    assert leader is not None
    for _ in range(5):
        world.write(world.leader() or leader)
        world.pass_time(0.02)
        for _ in range(len(world.messages)):
            world.deliver(0, copy=False)
    for number in (1, 2):
        core = world.cores.get(number)
        if core:
            world.step(number, raft.StateSaved(core.commit, f"state {core.commit}"))
    world.calm(until=5.0)
    assert len({core.commit for core in world.cores.values()}) == 1


def test_a_deposed_leader_does_not_confirm_a_read() -> None:
    world = World(3, 2)
    world.calm(until=5.0)
    old = world.leader()
    assert old is not None
    others = [n for n in (1, 2, 3) if n != old]
    world.cut.add(old)
    for _ in range(60):  # the old leader's clock stands still: it does not know yet
        world.now += 0.1
        for number in others:
            world.step(number, raft.Ticked())
        for _ in range(len(world.messages)):
            world.deliver(0, copy=False)
    new = world.leader()
    assert new in others
    assert new is not None
    world.write(new)
    for _ in range(4):
        for _ in range(len(world.messages)):
            world.deliver(0, copy=False)
    assert world.acknowledged
    world.cut.clear()
    world.read(old)  # fails inside if it is confirmed with an index from before the write
    for _ in range(10):
        for _ in range(len(world.messages)):
            world.deliver(0, copy=False)
    assert world.cores[old].role == "follower"
