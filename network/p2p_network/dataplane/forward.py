"""Which packet goes where? The two hot paths, between the TUN device and the peers' carriers.

Outwards (`on_tun_ready`): super-packets are read straight into one long buffer, each behind its entry head,
so that consecutive packets for one peer already form a batch; the batch is sealed and sent from there without
a copy. Inwards (`deliver`): each entry of an opened record is checked (honest headers, a source that the peer
owns, a destination that is ours) and written to the device from where it lies.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable
from time import monotonic
from typing import Final

from p2p_network.dataplane.icmp import too_big
from p2p_network.dataplane.messages import Configure
from p2p_network.dataplane.packet import (
    MAX_PACKET_BYTES,
    OFFLOAD_OF_GSO,
    VNET_BYTES,
    Forged,
    destination,
    inspect,
)
from p2p_network.dataplane.peers import Peer, PeerTable
from p2p_network.dataplane.records import ENTRY_BYTES, MAX_PLAIN_BYTES, entries, put_length
from p2p_network.dataplane.routes import ONE_TO_MANY, RouteTable, broadcast_of, parse_networks
from p2p_network.dataplane.tun import Tun

_READ_BYTES: Final = VNET_BYTES + MAX_PACKET_BYTES
_HEAD_BYTES: Final = ENTRY_BYTES + VNET_BYTES
_LAST_START: Final = 1 << 15
"""A batch that is longer is sent: one whole super-packet, or as many small ones. Longer ones leave the cache
between reading, sealing and sending: 5 % more of the processor's time.
"""
_BATCH_BYTES: Final = _LAST_START + _READ_BYTES + ENTRY_BYTES
_TURN_BYTES: Final = 1 << 19
"""So much is read from the device before sockets get their turn."""

_DEVICE_GONE: Final = (errno.EBADFD, errno.ENODEV, errno.EBADF)

Beat = Callable[[int, int], None]


class Forwarder:
    """Owns the device's descriptor while attached; counts what belongs to no peer in `drops`."""

    def __init__(self, table: PeerTable, on_device_lost: Callable[[], None]) -> None:
        self.drops: dict[str, int] = {}
        self.opened = mmap.mmap(-1, MAX_PLAIN_BYTES)
        """Where carriers put the opened record that they then `deliver`."""
        self._table = table
        self._on_device_lost = on_device_lost
        self._own: RouteTable[str] = RouteTable()
        self._batch = mmap.mmap(-1, _BATCH_BYTES)
        self._batch_view = memoryview(self._batch)
        self.opened_view = memoryview(self.opened)
        self._tun: Tun | None = None

    def attach(self, tun: Tun, config: Configure) -> None:
        """Forward between this device and the peers. Raises ValueError for an address that is none."""
        own, networks = parse_networks(config.addresses), parse_networks(config.networks)
        barred = (*ONE_TO_MANY, *broadcast_of(networks))
        self._own.bar(barred)
        self._own.assign("self", own)
        self._table.routes.bar(barred)
        self._tun = tun

    def detach(self) -> None:
        """Forward nothing; carriers stay."""
        self._tun = None

    def on_tun_ready(self, _events: int) -> None:
        """Read what the kernel has for the mesh, up to a turn's worth."""
        done = 0
        while done < _TURN_BYTES and self._tun is not None:
            read = self._read_batch(self._tun.fd)
            if read < 0:
                return
            done += read

    def _read_batch(self, fd: int) -> int:
        """Read and send up to a batch; its bytes, or -1 once the device is empty."""
        buffer, view, owner_of = self._batch, self._batch_view, self._table.routes.owner_of
        end = packets = 0
        target: Peer | None = None
        drained = False
        while end <= _LAST_START:
            at = end + ENTRY_BYTES
            try:
                size = os.readv(fd, (view[at : at + _READ_BYTES],)) - VNET_BYTES
            except BlockingIOError:
                drained = True
                break
            except OSError as exc:
                drained = True
                self._device_failed(exc)
                break
            address = destination(buffer, at + VNET_BYTES, size)
            peer = owner_of(address) if address is not None else None
            if peer is None:
                self._unroutable(address)
                continue
            if buffer[at + 1] and not self._takes(peer, buffer[at + 1]):
                peer.drop("unsupported")
                continue
            if peer is not target:
                if target is not None:
                    target.send(view[:end], packets, monotonic())
                    # Move down so that the batch of the next peer has the whole buffer before it.
                    buffer[ENTRY_BYTES : ENTRY_BYTES + VNET_BYTES + size] = view[at : at + VNET_BYTES + size]
                end = packets = 0
                target = peer
            if peer.guard is not None:
                peer.guard.sent(buffer, end + _HEAD_BYTES, size, monotonic())
            put_length(buffer, end, size)
            end += _HEAD_BYTES + size
            packets += 1
            peer.tx_packets += 1
            peer.tx_bytes += size
        if target is not None:
            target.send(view[:end], packets, monotonic())
        return -1 if drained else max(end, 1)

    @staticmethod
    def _takes(peer: Peer, gso: int) -> bool:
        """A super-packet may still be on its way through the device when offloads shrink for a new peer."""
        needed = OFFLOAD_OF_GSO.get(gso, 0)
        carrier = peer.carrier
        session = carrier.session if carrier is not None else None
        return needed != 0 and (session is None or session.keys.offloads & needed == needed)

    def _unroutable(self, address: bytes | None) -> None:
        if address is None:
            reason = "malformed"
        elif self._table.routes.is_barred(address):
            reason = "multicast"
        else:
            reason = "no_route"
        self.drops[reason] = self.drops.get(reason, 0) + 1

    def deliver(self, peer: Peer, size: int, on_beat: Beat) -> None:
        """Hand `size` bytes of entries in `opened`, from this peer, to the kernel.

        `on_beat(kind, value)` gets the control entries. Raises RecordViolation for entries that run over.
        """
        buffer, view, owner_of, is_own = (
            self.opened,
            self.opened_view,
            self._table.routes.owner_of,
            self._own.owner_of,
        )
        for kind, at, value in entries(buffer, size):
            if kind:
                on_beat(kind, value)
                continue
            try:
                source, target = inspect(buffer, at, value)
            except Forged:
                peer.drop("forged")
                continue
            if owner_of(source) is not peer:
                peer.drop("spoofed")
            elif is_own(target) is None:
                peer.drop("multicast" if self._own.is_barred(target) else "foreign")
            elif peer.guard is not None and not peer.guard.admits(
                buffer, at + VNET_BYTES, value, monotonic()
            ):
                peer.drop("not_allowed")
            elif self._tun is None:
                peer.drop("no_device")
            else:
                try:
                    os.write(self._tun.fd, view[at : at + VNET_BYTES + value])
                except OSError as exc:
                    peer.drop("device_refused")
                    self._device_failed(exc)
                    continue
                peer.rx_packets += 1
                peer.rx_bytes += value

    def answer_too_big(self, packet: memoryview, mtu: int) -> None:
        """Tell whoever on this machine sent `packet` that its path takes at most `mtu` bytes."""
        answer = too_big(bytes(packet[:MAX_PACKET_BYTES]), mtu)
        if answer and self._tun is not None:
            with contextlib.suppress(OSError):  # an answer may be lost, as on any path
                os.write(self._tun.fd, bytes(VNET_BYTES) + answer)

    def _device_failed(self, exc: OSError) -> None:
        """The device may be down for a while (EIO); only if it was removed there is no way on."""
        if exc.errno in _DEVICE_GONE:
            self._on_device_lost()
