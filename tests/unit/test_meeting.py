"""Notes that only members read, records that only their owner changes, and look-ups among liars."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from random import Random

import pytest

from p2p_network.core.ids import PeerId, base58_decode, peer_id_of, public_key_of
from p2p_network.host.addresses import Endpoint
from p2p_network.identity import Identity
from p2p_network.meeting import ipns, kad, notes, protobuf, rendezvous
from p2p_network.meeting.pace import Outcome, Pace, Pauses
from p2p_network.meeting.witness import Witnesses, observed_in

KEY, OTHER = b"r" * 32, b"s" * 32
NOON = 1_800_000_000.0 // notes.DAY_S * notes.DAY_S + notes.DAY_S / 2
DAY = notes.day_of(NOON)


def peer(number: int) -> PeerId:
    return peer_id_of(hashlib.sha256(str(number).encode()).digest())


def note(number: int, written_s: float = NOON) -> notes.Note:
    return notes.note_of(peer(number), [f"/ip4/10.0.0.{number}/tcp/4701", "/ip6/fd00::5/tcp/4701"], written_s)


SOME = tuple(note(number) for number in range(1, 4))
SEALED = notes.seal(KEY, DAY, SOME, bytes(12))


class TestNotes:
    def test_members_read_what_members_seal(self) -> None:
        assert notes.unseal(KEY, DAY, SEALED) == SOME

    @pytest.mark.parametrize(
        ("key", "day", "sealed"),
        [
            (OTHER, DAY, SEALED),
            (KEY, DAY + 1, SEALED),
            (KEY, DAY, SEALED[:-1] + bytes([SEALED[-1] ^ 1])),
            (KEY, DAY, SEALED[:40]),
            (KEY, DAY, b""),
            (KEY, DAY, SEALED + bytes(5000)),
        ],
    )
    def test_nothing_else_is_read(self, key: bytes, day: int, sealed: bytes) -> None:
        with pytest.raises(ValueError, match=r"nobody of this mesh|a box has at most"):
            notes.unseal(key, day, sealed)

    def test_a_box_tells_nothing_not_even_how_many_are_in_it(self) -> None:
        full = tuple(
            notes.Note(peer(n), tuple(Endpoint(f"fd00::{n}:{k}", 4701) for k in range(1, 9)), int(NOON))
            for n in range(1, 20)
        )
        sealed = [notes.seal(KEY, DAY, which, bytes(12)) for which in ((), SOME, full)]
        assert {len(box) for box in sealed} == {notes.BOX_BYTES}
        assert len(notes.unseal(KEY, DAY, sealed[2])) == notes.MAX_NOTES
        assert len(notes.seal(KEY, DAY, full[:1], bytes(12), notes.SINGLE_BYTES)) == notes.SINGLE_BYTES
        assert notes.unseal(KEY, DAY, notes.seal(KEY, DAY, full[:1], bytes(12), notes.SINGLE_BYTES))
        for secret in (public_key_of(peer(1)), b"\x0a\0\0\x01", KEY):
            assert secret not in sealed[1]

    def test_names_and_keys_are_new_every_day_and_say_nothing_of_each_other(self) -> None:
        made = [
            derived
            for key in (KEY, OTHER)
            for day in (DAY - 1, DAY, DAY + 1)
            for derived in (
                *(notes.box_seed(key, day, box) for box in range(notes.BOXES)),
                notes.namespace(key, day).encode(),
            )
        ]
        assert len(set(made)) == len(made)
        assert notes.meeting_psk(KEY) not in (KEY, notes.meeting_psk(OTHER))

    def test_clocks_may_differ_by_a_day(self) -> None:
        for clock in (NOON - notes.DAY_S, NOON + notes.DAY_S):
            assert DAY in notes.days_around(clock)
            assert notes.day_of(clock) in notes.days_around(NOON)
        assert DAY not in notes.days_around(NOON + 2 * notes.DAY_S)

    def test_a_box_keeps_the_latest_of_each_and_of_too_many_the_latest(self) -> None:
        old, new = note(1, NOON - 7200), note(1, NOON - 60)
        assert notes.merged([old, new], None, NOON) == (new,)
        assert notes.merged([note(2, NOON - notes.MAX_AGE_S - 1)], None, NOON) == ()
        crowd = [note(n, NOON - n) for n in range(1, 40)]
        kept = notes.merged(crowd, note(99), NOON)
        assert len(kept) == notes.MAX_NOTES
        assert kept[0].peer == peer(99)

    def test_a_note_from_the_future_counts_as_written_now(self) -> None:
        own, liar = note(1), note(2, NOON + 10**9)
        assert {n.written_s for n in notes.merged([liar], own, NOON)} == {int(NOON)}

    def test_its_own_note_is_replaced_even_by_an_older_one(self) -> None:
        """The machine's clock was put back: what it says now counts."""
        own = note(1, NOON)
        assert notes.merged([note(1, NOON + 3600)], own, NOON) == (own,)

    @pytest.mark.parametrize(
        ("inside", "wants"),
        [
            ((), True),
            ((note(1, NOON - 60),), False),
            ((note(1, NOON - notes.REFRESH_S),), True),
            ((notes.note_of(peer(1), ["/ip4/10.9.9.9/tcp/1"], NOON),), True),
            (tuple(note(n, NOON - 60) for n in range(2, 2 + notes.MAX_NOTES)), False),
            (tuple(note(n, NOON - notes.FRESH_S) for n in range(2, 2 + notes.MAX_NOTES)), True),
        ],
        ids=["empty", "there", "stale", "moved", "full", "full of old ones"],
    )
    def test_when_a_member_writes(self, inside: tuple[notes.Note, ...], wants: bool) -> None:
        assert notes.wants_writing(inside, note(1), NOON) is wants
        assert not notes.wants_writing(inside, replace(note(1), endpoints=()), NOON)

    def test_loopback_is_named_only_if_there_is_nothing_else(self) -> None:
        here, there = "/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"
        assert notes.note_of(peer(1), [here, there], NOON).endpoints == (Endpoint("10.0.0.1", 1),)
        assert notes.note_of(peer(1), [here], NOON).endpoints == (Endpoint("127.0.0.1", 1),)

    def test_members_spread_over_the_boxes(self) -> None:
        assert {notes.box_of(peer(number)) for number in range(80)} == set(range(notes.BOXES))


class TestIpns:
    SEED, NOW = b"b" * 32, 1_800_000_000.0
    PUBLIC = notes.public_key(SEED)

    def test_what_its_key_signed_is_read(self) -> None:
        record = ipns.Record(bytes(range(256)), 2**40, self.NOW + 60)
        assert ipns.read(self.PUBLIC, ipns.sign(self.SEED, record), self.NOW) == record

    def test_the_largest_box_fits_into_what_dht_nodes_take(self) -> None:
        raw = ipns.sign(self.SEED, ipns.Record(bytes(notes.BOX_BYTES), 2**63, self.NOW))
        assert len(raw) < ipns.MAX_RECORD_BYTES

    def test_the_name_is_the_multihash_of_the_key(self) -> None:
        name = ipns.name_of(self.PUBLIC)
        assert name == b"/ipns/" + base58_decode(Identity(self.SEED).peer_id)
        assert name[6:8] == b"\0\x24"

    @pytest.mark.parametrize(
        "break_it",
        [
            lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
            lambda raw: raw[:30],
            lambda raw: raw + bytes(ipns.MAX_RECORD_BYTES),
            lambda raw: b"",
            lambda raw: protobuf.message((8, b"x" * 64), (9, b"\xa0")),
        ],
    )
    def test_anything_else_is_refused(self, break_it: object) -> None:
        raw = ipns.sign(self.SEED, ipns.Record(b"content", 1, self.NOW + 60))
        with pytest.raises(ValueError, match=r"record|field|signed|number|kind"):
            ipns.read(self.PUBLIC, break_it(raw), self.NOW)  # type: ignore[operator]

    def test_what_another_key_signed_and_what_has_expired_is_refused(self) -> None:
        record = ipns.Record(b"content", 1, self.NOW + 60)
        with pytest.raises(ValueError, match="not signed by its key"):
            ipns.read(self.PUBLIC, ipns.sign(b"o" * 32, record), self.NOW)
        with pytest.raises(ValueError, match="expired"):
            ipns.read(self.PUBLIC, ipns.sign(self.SEED, record), self.NOW + 61)


def dht_node(number: int) -> kad.Peer:
    return kad.Peer(hashlib.sha256(f"node {number}".encode()).digest(), (Endpoint("192.0.2.1", number + 1),))


class TestLookUp:
    KEY = b"/ipns/somebody"

    def distance(self, found: kad.Peer) -> int:
        target, own = (hashlib.sha256(text).digest() for text in (self.KEY, found.id))
        return int.from_bytes(target, "big") ^ int.from_bytes(own, "big")

    def run(self, look_up: kad.LookUp, answers: object, chance: Random) -> None:
        """Asked in bursts, answered in any order; `answers`: whom a node names, or None for silence."""
        waiting: list[kad.Peer] = []
        while not look_up.is_over:
            while (peer := look_up.ask()) is not None:
                waiting.append(peer)
            assert len(waiting) <= kad.AT_ONCE
            peer = waiting.pop(chance.randrange(len(waiting)))
            named = answers(peer)  # type: ignore[operator]
            if named is None:
                look_up.failed(peer)
            else:
                look_up.answered(peer, named)

    @pytest.mark.parametrize("silent", [0.0, 0.3])
    def test_it_finds_the_closest_that_answer(self, silent: float) -> None:
        chance = Random(7)
        nodes = [dht_node(number) for number in range(300)]
        mute = {node.id for node in nodes if chance.random() < silent} - {nodes[0].id}
        knows = {node.id: chance.sample(nodes, 60) for node in nodes}

        def answers(asked: kad.Peer) -> list[kad.Peer] | None:
            if asked.id in mute:
                return None
            return sorted(knows[asked.id], key=self.distance)[:20]

        look_up = kad.LookUp(self.KEY, nodes[:1])
        self.run(look_up, answers, chance)
        best = sorted((node for node in nodes if node.id not in mute), key=self.distance)
        assert len(look_up.closest()) == kad.CLOSEST
        assert len(set(look_up.closest()) & set(best[: kad.CLOSEST])) >= kad.CLOSEST - 2

    def test_liars_that_name_ever_closer_nodes_end_it_neither_early_nor_never(self) -> None:
        chance = Random(8)
        numbers = iter(range(1000, 10**6))
        honest = dht_node(1)

        def answers(asked: kad.Peer) -> list[kad.Peer] | None:
            if asked.id == honest.id:
                return []
            if asked.id.startswith(b"made up"):
                return None
            return [kad.Peer(b"made up %d" % next(numbers), asked.endpoints) for _ in range(kad.MAX_CLOSER)]

        look_up = kad.LookUp(self.KEY, [honest, dht_node(2), dht_node(3)])
        self.run(look_up, answers, chance)
        assert honest in look_up.closest()

    def test_it_asks_no_more_than_it_needs(self) -> None:
        asked: list[kad.Peer] = []
        look_up = kad.LookUp(self.KEY, [dht_node(number) for number in range(100)], enough=8)
        self.run(look_up, lambda peer: asked.append(peer) or [], Random(1))
        assert len(asked) == 8
        assert look_up.closest() == tuple(sorted(asked, key=self.distance))


class TestAnswers:
    def answer(self, *addresses: bytes) -> bytes:
        named = protobuf.message((1, b"an id"), *((2, address) for address in addresses))
        return protobuf.message((3, protobuf.message((1, b"k"), (2, b"value"))), (8, named))

    PUBLIC = b"\x04\x08\x08\x08\x08\x06\x0f\xa1"
    HOME = b"\x04\x0a\x00\x00\x01\x06\x0f\xa1"

    def test_what_can_be_dialled_is_taken(self) -> None:
        udp, websocket = b"\x04\x08\x08\x08\x08\x91\x02\x0f\xa1", self.PUBLIC + b"\xdd\x03"
        found = kad.read_answer(self.answer(self.PUBLIC, udp, websocket), private_too=False)
        assert found.value == b"value"
        assert found.closer == (kad.Peer(b"an id", (Endpoint("8.8.8.8", 4001),)),)

    def test_nobody_leads_a_node_to_doors_of_its_own_network(self) -> None:
        raw = self.answer(
            self.HOME, b"\x04\x7f\0\0\1\x06\0\x16", b"\x29" + b"\xfe\x80" + bytes(14) + b"\x06\0\1"
        )
        assert kad.read_answer(raw, private_too=False).closer == ()
        assert kad.read_answer(self.answer(self.HOME), private_too=True).closer

    def test_a_flood_is_cut(self) -> None:
        crowd = protobuf.message(
            *((8, protobuf.message((1, b"%d" % n), (2, self.PUBLIC))) for n in range(900))
        )
        assert len(kad.read_answer(crowd, private_too=False).closer) == kad.MAX_CLOSER


class TestEntrances:
    def test_the_default_ones_are_understood(self) -> None:
        by_name, by_address = map(kad.entrance, kad.PUBLIC_ENTRANCES)
        assert by_name.name == "bootstrap.libp2p.io"
        assert by_address.endpoint == Endpoint("104.131.131.82", 4001)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "192.0.2.1:4001",
            "/ip4/192.0.2.1/tcp/4001",
            "/ip4/192.0.2.1/tcp/4001/p2p/x0",
            "/dnsaddr",
            "/dnsaddr/",
        ],
    )
    def test_others_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not"):
            kad.entrance(text)

    def test_txt_records_are_read_and_others_passed_over(self) -> None:
        name = f"/dnsaddr/sv15.bootstrap.libp2p.io/p2p/{peer(1)}"
        address = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer(2)}"
        quic = f"/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{peer(2)}"
        records = [f"dnsaddr={text}".encode() for text in (name, quic, address, name)]
        assert kad.dnsaddr_texts([*records, b"v=spf1", b"\xff\xfe"]) == (name, address)


class TestRegistry:
    """What a rendezvous server keeps, and for whom."""

    BORN = b"12345678"

    def register(
        self, registry: rendezvous.Registry, client: str, now: float = 0, **more: object
    ) -> rendezvous.Message | None:
        words: dict[str, object] = {"namespace": "day", "record": client.encode(), "ttl_s": 100, **more}
        return registry.answer(now, client, rendezvous.Register(**words))  # type: ignore[arg-type]

    def found(self, registry: rendezvous.Registry, now: float = 0, **more: object) -> rendezvous.Discovered:
        answer = registry.answer(now, "asker", rendezvous.Discover("day", **more))  # type: ignore[arg-type]
        assert isinstance(answer, rendezvous.Discovered)
        return answer

    def test_what_is_registered_is_found_until_it_expires_or_is_withdrawn(self) -> None:
        registry = rendezvous.Registry(self.BORN)
        assert self.register(registry, "a") == rendezvous.Registered(rendezvous.OK, 100)
        self.register(registry, "b", now=50)
        assert self.found(registry, now=99).records == (b"a", b"b")
        assert self.found(registry, now=100).records == (b"b",)
        assert registry.answer(110, "c", rendezvous.Unregister("day")) is None
        assert len(registry) == 1, "nobody withdraws another's"
        assert registry.answer(110, "b", rendezvous.Unregister("day")) is None
        assert self.found(registry, now=111).records == ()
        assert len(registry) == 0

    def test_a_new_word_replaces_the_old_one(self) -> None:
        registry = rendezvous.Registry(self.BORN)
        self.register(registry, "a")
        self.register(registry, "a", record=b"new")
        assert self.found(registry).records == (b"new",)

    def test_a_cookie_gets_what_came_since_and_only_at_its_server(self) -> None:
        registry = rendezvous.Registry(self.BORN)
        for client in "abc":
            self.register(registry, client)
        first = self.found(registry, limit=2)
        assert first.records == (b"a", b"b")
        second = self.found(registry, cookie=first.cookie)
        assert second.records == (b"c",)
        assert self.found(registry, cookie=second.cookie).records == ()
        for cookie in (b"x", b"x" * 16, bytes(300)):
            assert self.found(registry, cookie=cookie).status == rendezvous.INVALID_COOKIE
        later = rendezvous.Registry(b"another!")
        assert self.found(later, cookie=second.cookie).status == rendezvous.INVALID_COOKIE

    @pytest.mark.parametrize(
        ("more", "status"),
        [
            ({"namespace": ""}, rendezvous.INVALID_NAMESPACE),
            ({"namespace": "n" * 256}, rendezvous.INVALID_NAMESPACE),
            ({"record": b""}, rendezvous.INVALID_RECORD),
            ({"record": bytes(rendezvous.MAX_RECORD_BYTES + 1)}, rendezvous.INVALID_RECORD),
            ({"ttl_s": rendezvous.MIN_TTL_S - 1}, rendezvous.INVALID_TTL),
            ({"ttl_s": 2**63}, rendezvous.INVALID_TTL),
        ],
    )
    def test_what_it_does_not_keep(self, more: dict[str, object], status: int) -> None:
        registry = rendezvous.Registry(self.BORN)
        assert self.register(registry, "a", **more) == rendezvous.Registered(status)
        assert len(registry) == 0

    def test_it_is_bounded_and_those_who_are_there_may_stay(self) -> None:
        registry = rendezvous.Registry(self.BORN)
        for number in range(rendezvous.MAX_PER_NAMESPACE):
            self.register(registry, f"c{number}")
        assert self.register(registry, "late") == rendezvous.Registered(rendezvous.UNAVAILABLE)
        assert self.register(registry, "c0") == rendezvous.Registered(rendezvous.OK, 100)
        for number in range(rendezvous.MAX_PER_CLIENT + 1):
            last = self.register(registry, "greedy", namespace=f"space {number}")
        assert last == rendezvous.Registered(rendezvous.UNAVAILABLE)
        assert len(self.found(registry).records) == rendezvous.MAX_DISCOVERED

    @pytest.mark.parametrize(
        "message",
        [
            rendezvous.Register("day", b"record", 7200),
            rendezvous.Registered(rendezvous.INVALID_TTL, 0),
            rendezvous.Unregister("day"),
            rendezvous.Discover("day", 10, b"cookie"),
            rendezvous.Discovered(rendezvous.OK, (b"a", b"b"), b"cookie"),
        ],
    )
    def test_messages_are_read_as_they_were_written(self, message: rendezvous.Message) -> None:
        assert rendezvous.decode(rendezvous.encode(message)) == message

    def test_the_bytes_are_those_of_the_specification(self) -> None:
        """As protoc makes them from the .proto of the specification."""
        register = bytes.fromhex("0800" + "120a" + "0a02" + b"ns".hex() + "1201" + b"r".hex() + "1890" + "1c")
        assert rendezvous.encode(rendezvous.Register("ns", b"r", 3600)) == register


class TestWitnesses:
    OWN = ("/ip4/10.0.0.5/tcp/4701", "/ip6/fd00::5/tcp/4701")

    def test_two_networks_that_agree_are_believed(self) -> None:
        witnesses = Witnesses()
        witnesses.heard("192.0.2.1", "203.0.113.7")
        witnesses.heard("192.0.99.1", "203.0.113.7")
        assert witnesses.believed(self.OWN) == (), "one liar has many addresses in one network"
        witnesses.heard("198.51.100.1", "203.0.113.7")
        assert witnesses.believed(self.OWN) == ("/ip4/203.0.113.7/tcp/4701",)
        assert witnesses.believed(["/ip4/203.0.113.7/tcp/4701"]) == (), "it is known already"

    def test_of_many_some_are_heard(self) -> None:
        witnesses = Witnesses()
        for number in range(1, 100):
            witnesses.heard(f"{number}.0.2.1", f"203.0.113.{number}")
        assert witnesses.are_enough
        assert witnesses.believed(self.OWN) == ()

    def test_what_identify_says_is_read(self) -> None:
        raw = protobuf.message(
            (5, b"protocol version"), (4, b"\x04\xcb\x00\x71\x07\x06\x9c\x40"), (2, b"address")
        )
        assert observed_in(raw) == Endpoint("203.0.113.7", 40000)
        assert observed_in(protobuf.message((2, b"address"))) is None


class TestPace:
    def test_often_while_alone_seldom_with_others_and_at_once_when_lost_or_moved(self) -> None:
        pace = Pace(Pauses(5, 20, 60, 3600, 90), jitter=lambda: 0.5)
        here, there = ("/ip4/10.0.0.1/tcp/1",), ("/ip4/10.0.0.2/tcp/1",)
        assert not pace.is_due(0, alone=True, addresses=()), "it has nothing to say yet"
        assert not pace.is_due(0, alone=True, addresses=here)
        assert pace.is_due(5, alone=True, addresses=here)
        due = 5.0
        for pause in (20, 40, 60, 60):
            pace.looked(due, Outcome.WROTE)
            assert not pace.is_due(due + pause - 1, alone=True, addresses=here)
            due += pause
            assert pace.is_due(due, alone=True, addresses=here)
        assert pace.is_due(due, alone=False, addresses=here)
        pace.looked(due, Outcome.WROTE)
        assert pace.is_due(due + 90, alone=False, addresses=here), "see whether the note is still there"
        pace.looked(due + 90, Outcome.LOOKED)
        assert not pace.is_due(due + 3600, alone=False, addresses=here)
        assert not pace.is_due(due + 3600, alone=False, addresses=there)
        assert pace.is_due(due + 3620, alone=False, addresses=there), "its address changed"
        pace.looked(due + 3620, Outcome.LOOKED)
        assert not pace.is_due(due + 3630, alone=True, addresses=there)
        assert pace.is_due(due + 3650, alone=True, addresses=there), "it lost the others"

    def test_what_cannot_be_reached_is_tried_soon_and_then_ever_more_seldom(self) -> None:
        pace = Pace(Pauses(5, 20, 60, 200, 90), jitter=lambda: 0.5)
        here, due = ("/ip4/10.0.0.1/tcp/1",), 5.0
        assert not pace.is_due(0, alone=False, addresses=here)
        for pause in (20, 40, 80, 160, 200, 200):
            assert pace.is_due(due, alone=False, addresses=here)
            pace.looked(due, Outcome.FAILED)
            assert not pace.is_due(due + pause - 1, alone=False, addresses=here)
            due += pause
        pace.looked(due, Outcome.LOOKED)
        pace.looked(due, Outcome.FAILED)
        assert pace.is_due(due + 20, alone=False, addresses=here), "it was well meanwhile"


def test_a_foreign_key_proves_itself_and_an_unsafe_one_is_refused() -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    from p2p_network.host.foreign_keys import ForeignKey
    from p2p_network.host.foreign_keys import KeyType as Kind

    der, pkix = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    message = b"noise-libp2p-static-key:..."
    signer = rsa.generate_private_key(65537, 2048)
    key = ForeignKey(Kind.RSA, signer.public_key().public_bytes(der, pkix))
    signature = signer.sign(message, padding.PKCS1v15(), hashes.SHA256())
    assert key.verify(message, signature)
    assert not key.verify(b"another", signature)
    curve = ec.generate_private_key(ec.SECP256R1())
    key = ForeignKey(Kind.ECDSA, curve.public_key().public_bytes(der, pkix))
    assert key.verify(message, curve.sign(message, ec.ECDSA(hashes.SHA256())))
    weak = rsa.generate_private_key(65537, 1024).public_key().public_bytes(der, pkix)
    for kind, raw in (
        (Kind.RSA, weak),
        (Kind.RSA, b"junk"),
        (Kind.Secp256k1, b"junk"),
        (Kind.RSA, bytes(9000)),
    ):
        with pytest.raises(ValueError, match=r".+"):
            ForeignKey(kind, raw)
