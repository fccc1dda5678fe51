"""Does a node behind a router have its ports led to it, and give them back? Against a router of our own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio

from p2p_bootstrap.node.port_mapping import PortMapping
from p2p_network import igd, nat
from p2p_network.host import gateway
from p2p_network.host.addresses import Endpoint

KIND = "urn:schemas-upnp-org:service:WANPPPConnection:1"
DESCRIPTION = (
    f"<root><device><serviceList><service><serviceType>{KIND}</serviceType>"
    "<controlURL>/ctl</controlURL></service></serviceList></device></root>"
)


@dataclass
class Router:
    """Answers searches and calls on loopback. `refuses`: errorCode by port; `tells`: its description."""

    search: tuple[str, int] = ("", 0)
    mapped: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    refuses: dict[int, int] = field(default_factory=dict)
    leases: bool = True
    tells: bytes = DESCRIPTION.encode()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.bind(("127.0.0.1", 0))
                self.search = sock.getsockname()
                task_status.started()
                while True:
                    asked, sender = await sock.recvfrom(2048)
                    assert asked == igd.search()
                    for answer in (b"garbage", b"HTTP/1.1 200 OK\r\nLOCATION: http://192.0.2.7/x\r\n\r\n"):
                        await sock.sendto(answer, sender)
                    found = f"HTTP/1.1 200 OK\r\nLOCATION: http://127.0.0.1:{port}/d\r\n\r\n"
                    await sock.sendto(found.encode(), sender)

    async def _serve(self, stream: trio.SocketStream) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += await stream.receive_some()
        head, _, body = asked.partition(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: (\d+)", head)
        while size is not None and len(body) < int(size[1]):
            body += await stream.receive_some()
        status, answer = (200, self.tells) if head.startswith(b"GET /d ") else self._obey(head, body)
        await stream.send_all(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(answer)) + answer)

    def _obey(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        said = dict(re.findall(r"<(\w+)>([^<]*)</", body.decode()))
        key = (said["NewProtocol"], int(said["NewExternalPort"]))
        code = self.refuses.get(key[1], 0)
        if not code and not self.leases and said.get("NewLeaseDuration", "0") != "0":
            code = igd.PERMANENT_ONLY
        if code:
            return (
                500,
                f"<f><errorCode>{code}</errorCode><errorDescription>no</errorDescription></f>".encode(),
            )
        if f'"{KIND}#AddPortMapping"'.encode() in head:
            self.mapped[key] = (said["NewInternalClient"], int(said["NewLeaseDuration"]))
        else:
            del self.mapped[key]
        return 200, b"<ok/>"


class Behind:
    """What `PortMapping` needs of `Outside`: a node that is seen under a router's address and not dialled."""

    def __init__(self) -> None:
        self.nat = nat.Nat("cone", "198.51.100.7:4702", "198.51.100.7", 2, "")
        self.reachable: bool | None = False
        self.dialled_back = trio.Event()

    def own_endpoints(self) -> tuple[Endpoint, ...]:
        return (Endpoint("127.0.0.1", 4701), Endpoint("::1", 4701))

    def dial_back_soon(self) -> None:
        self.dialled_back.set()


@pytest.fixture
async def router(nursery: trio.Nursery) -> Router:
    made = Router()
    await nursery.start(made.run)
    return made


WANTED = {("TCP", 4701), ("TCP", 4702), ("UDP", 4702)}


async def test_ports_are_mapped_tried_and_given_back(router: Router) -> None:
    outside = Behind()
    mapping = PortMapping(outside, 4702, search=router.search)  # type: ignore[arg-type]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mapping.run)
            await outside.dialled_back.wait()
            assert router.mapped == dict.fromkeys(WANTED, ("127.0.0.1", igd.LEASE_S))
            assert mapping.status == "the router leads TCP 4701, TCP 4702, UDP 4702 here"
            nursery.cancel_scope.cancel()
    assert router.mapped == {}


async def test_a_router_without_leases_and_a_port_that_is_taken(router: Router) -> None:
    router.leases, router.refuses = False, {4701: igd.TAKEN}
    mapping = PortMapping(Behind(), 4702, search=router.search)  # type: ignore[arg-type]
    with trio.fail_after(30):
        assert await mapping.map_all()
        assert router.mapped == dict.fromkeys(WANTED - {("TCP", 4701)}, ("127.0.0.1", 0))
        await mapping.give_back()
        router.refuses = dict.fromkeys((4701, 4702), igd.TAKEN)
        assert not await mapping.map_all()
        assert mapping.status == "the router 127.0.0.1 refuses: another machine has that port"


@pytest.mark.parametrize("tells", [b"<!DOCTYPE a><a/>", b"x" * (igd.MAX_XML_BYTES + 9), b"<root/>"])
async def test_a_router_that_makes_no_sense_is_none(
    router: Router, tells: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.tells = tells
    monkeypatch.setattr(gateway, "SEARCH_S", 0.5)
    with trio.fail_after(30):
        assert await gateway.find(["127.0.0.1"], router.search) is None
