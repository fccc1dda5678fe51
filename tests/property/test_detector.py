"""Whatever comes in whatever order, does the failure detector keep its word, and stay small?"""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2p_network import liveness, wire
from p2p_network.core.ids import PeerId
from p2p_network.detector import (
    ATTEMPTS,
    FANOUT,
    HELPERS,
    Absent,
    Answered,
    AskAbout,
    ChannelClosed,
    ChannelOpened,
    Detector,
    Event,
    MembersKnown,
    Present,
    Tell,
    Tick,
    Told,
)
from p2p_network.liveness import MAX_INCARNATION, Alive, Suspicion

ME = PeerId("me")
PEERS = [PeerId(f"peer-{n}") for n in range(6)]
GENUINE = b"g" * 64

peers = st.sampled_from(PEERS)
incarnations = st.integers(0, 5) | st.just(MAX_INCARNATION)
aliens = st.sampled_from([*PEERS, ME, PeerId("nobody")])
words = st.builds(
    Alive, aliens, incarnations, st.sampled_from([b"", b"x" * 16]), st.sampled_from([GENUINE, bytes(64)])
)
happenings = st.one_of(
    peers.map(ChannelOpened),
    st.builds(ChannelClosed, peers, st.just("cut")),
    st.frozensets(peers).map(MembersKnown),
    st.builds(Told, peers, words | st.builds(Suspicion, aliens, incarnations)),
    st.builds(Answered, peers, peers, words | st.none()),
    st.just(Tick()),
    st.floats(0, 20),
)


@given(st.lists(happenings, max_size=60), st.randoms(use_true_random=False), st.data())
def test_only_a_channel_or_its_own_word_makes_a_member_present(
    happened: list[Event | float], chance: random.Random, data: st.DataObject
) -> None:
    core = Detector(
        ME,
        random=chance.random,
        vouch=lambda incarnation, nonce: Alive(ME, incarnation, nonce, GENUINE),
        is_genuine=lambda alive: alive.signature == GENUINE,
    )
    now, members, channels, present = 0.0, frozenset[PeerId](), set[PeerId](), set[PeerId]()
    questions: dict[PeerId, bytes] = {}
    for event in happened:
        if isinstance(event, float):
            now += event
            event = Tick()
        if (
            isinstance(event, Answered)
            and event.alive is None
            and event.peer in questions
            and chance.random() < 0.5
        ):
            event = Answered(event.peer, event.helper, Alive(event.peer, 0, questions[event.peer], GENUINE))
        match event:
            case ChannelOpened(peer):
                channels.add(peer)
            case ChannelClosed(peer):
                channels.discard(peer)
            case MembersKnown(known):
                members = known
        incarnation = core.incarnation
        for effect in core.step(now, event).effects:
            match effect:
                case Present(peer, _, channel):
                    present.add(peer)
                    assert channel == (peer in channels)
                    if not channel:
                        assert isinstance(event, Answered | Told)
                        word = event.alive if isinstance(event, Answered) else event.word
                        assert isinstance(word, Alive)
                        assert (word.peer, word.signature) == (peer, GENUINE)
                case Absent(peer):
                    assert peer not in channels
                    present.remove(peer)  # was present: nobody is lost twice
                case AskAbout(peer, helpers, nonce):
                    questions[peer] = nonce
                    assert peer in members
                    assert len(set(helpers)) == len(helpers) <= HELPERS << (ATTEMPTS - 1)
                    assert set(helpers) <= channels - {peer}
                case Tell(peers_told, word):
                    assert set(peers_told) <= set(PEERS)
                    assert len(peers_told) <= FANOUT
                    assert len(wire.encode(word)) <= liveness.MAX_WORD_BYTES
        assert core.incarnation >= incarnation
        assert channels <= present <= channels | members
        wake = core.wake_at()
        assert wake is None or members - channels


@given(st.binary(max_size=700))
def test_garbage_is_no_word(raw: bytes) -> None:
    for read in (liveness.decode_ask, liveness.decode_alive, liveness.decode_word):
        try:
            found = read(raw)
        except ValueError:
            continue
        assert len(wire.encode(found)) <= liveness.MAX_WORD_BYTES


@given(words | st.builds(Suspicion, aliens, incarnations))
def test_words_survive_the_wire(word: liveness.Word) -> None:
    assert liveness.decode_word(wire.encode(word)) == word
