"""Under which address is a node seen that knows nobody but strangers?

A node in a cloud often has only a private address on its device and a public one before it, that leads to it
port by port. Members would tell it (`nat.py`); before it has met one, the nodes that it asks can: libp2p's
identify (specs/identify) says where a connection came from. The port is that of the connection and says
nothing, so the guess is: this IP address, and the ports that the node listens on. It is believed when
witnesses in two networks say the same; a wrong one costs others a dial in vain.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from p2p_network.host.addresses import Endpoint, parse_endpoint
from p2p_network.meeting import kad, protobuf

PROTOCOL: Final = "/ipfs/id/1.0.0"
MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_WITNESSES: Final = 8
_OBSERVED: Final = 4


def observed_in(raw: bytes) -> Endpoint | None:
    """Where the other side saw us, from its identify message; None if it doesn't say. Raises ValueError."""
    for number, field in protobuf.fields(raw):
        if number == _OBSERVED:
            return kad.endpoint_in(protobuf.a_string(field, MAX_MESSAGE_BYTES), private_too=True)
    return None


class Witnesses:
    """What others said of this node's address. `needed`: how many networks must agree."""

    def __init__(self, needed: int = 2) -> None:
        self._needed = needed
        self._said: dict[str, str] = {}  # the witness's network: our address

    @property
    def are_enough(self) -> bool:
        """Whether nobody more need be asked."""
        return len(self._said) >= MAX_WITNESSES

    def heard(self, witness: str, seen: str) -> None:
        """Somebody at the IP address `witness` sees us at the IP address `seen`."""
        if self.are_enough and _network(witness) not in self._said:
            return
        self._said[_network(witness)] = seen

    def believed(self, own: Iterable[str]) -> tuple[str, ...]:
        """More multiaddresses where this node may be dialled, given those that it has."""
        listening = [endpoint for endpoint, _ in map(parse_endpoint, own)]
        hosts = {endpoint.host for endpoint in listening}
        counts = {seen: list(self._said.values()).count(seen) for seen in sorted(set(self._said.values()))}
        found: dict[str, None] = {}
        for seen, count in counts.items():
            if count < self._needed or seen in hosts:
                continue
            for endpoint in listening:
                if (":" in endpoint.host) == (":" in seen):
                    found.setdefault(str(Endpoint(seen, endpoint.port)))
        return tuple(found)


def _network(address: str) -> str:
    ip = ipaddress.ip_address(address)
    return str(ipaddress.ip_network((ip, 16 if ip.version == 4 else 32), strict=False))
