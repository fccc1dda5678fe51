"""Peers with the right keys and the wrong manners, byte by byte: for tests of what a data plane takes."""

from __future__ import annotations

import os
import socket

import two_planes
from plane_traffic import PATIENCE_S, TCP4, UDP4
from two_planes import Field, session_pair

from p2p_network.dataplane import preface, records
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.datagram_socket import ANSWER, CALL, FLIGHT_BYTES
from p2p_network.dataplane.datagrams import DatagramSealer
from p2p_network.dataplane.udp import TAG_BYTES


class FakePeer:
    """Peer 3, with the right keys and the wrong manners: speaks to place 1 byte by byte."""

    def __init__(self, lab: Field) -> None:
        self._one, self._three = lab.places[0], lab.places[2]
        self.keys, self.other_keys = session_pair(self._three, self._one)

    async def introduce(self, plane: DataPlane) -> None:
        await plane.put_peer(self._three.as_peer(self.other_keys, dial=False))

    def connect(self) -> socket.socket:
        sock = self._three.sockets(TCP4)[0]
        sock.settimeout(PATIENCE_S)
        sock.connect((self._one.outer, two_planes.PORT))
        return sock

    def greet(self, number: int) -> tuple[socket.socket, bytes, records.Sealer]:
        sock, salt = self.connect(), os.urandom(32)
        flight = preface.make_preface(self.keys, salt, number)
        sock.sendall(flight)
        welcome = sock.recv(preface.WELCOME_BYTES, socket.MSG_WAITALL)
        other_salt = preface.open_welcome(self.keys, salt, number, welcome)
        return sock, flight, preface.record_keys(self.keys, salt, other_salt)[0]


def got_nothing(sock: socket.socket) -> bool:
    """Whether the other end closes without a byte."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


class FakeCaller:
    """The last place, with the right keys and the wrong manners: datagram by datagram."""

    def __init__(self, lab: Field) -> None:
        self._one, self._two = lab.places[0], lab.places[-1]
        self.keys, self.other_keys = session_pair(self._two, self._one)
        self.sock = self._two.sockets(UDP4)[0]
        self._target = (self._one.outer, two_planes.PORT)

    async def introduce(self, plane: DataPlane) -> None:
        await plane.put_peer(self._two.as_peer(self.other_keys, dial=False))

    def put(self, data: bytes) -> None:
        self.sock.sendto(data, self._target)

    def answer(self, seconds: float = 0.5) -> bytes:
        """What comes back, b"" for nothing."""
        self.sock.settimeout(seconds)
        try:
            return self.sock.recv(2048)
        except TimeoutError:
            return b""

    def call(self, number: int) -> tuple[bytes, bytes]:
        """(the call as sent, salt)."""
        salt = os.urandom(preface.SALT_BYTES)
        flight = preface.make_preface(self.keys, salt, number, "udp")
        return CALL.to_bytes(4, "big") + flight + bytes(FLIGHT_BYTES - 4 - len(flight)), salt

    def greet(self, number: int) -> tuple[bytes, DatagramSealer]:
        """A whole handshake; (the call, what seals data)."""
        call, salt = self.call(number)
        self.put(call)
        answer = self.answer(PATIENCE_S)
        assert int.from_bytes(answer[:4], "big") == ANSWER
        assert answer[4 : 4 + TAG_BYTES] == salt[:TAG_BYTES]
        welcome = answer[4 + TAG_BYTES :][: preface.WELCOME_BYTES]
        other_salt = preface.open_welcome(self.keys, salt, number, welcome, "udp")
        return call, preface.datagram_keys(self.keys, salt, other_salt)[0]


def bundle(sealer: DatagramSealer, plain: bytes) -> bytes:
    frame = memoryview(bytearray(len(plain) + 64))
    return bytes(frame[: sealer.seal_bundle(plain, frame)])
