"""What is said to a home router that opens ports for the machines behind it, and what do its answers mean?

UPnP's Internet Gateway Device: a search by multicast (SSDP), a description in XML, and SOAP calls on the
service WANIPConnection or WANPPPConnection. Nothing of it is authentic, so: only the machine that answered is
spoken to; sizes, depth and counts are bounded; a document type, and with it every entity, ends the reading.
Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit
from xml.parsers import expat

SEARCH_ADDRESS: Final = ("239.255.255.250", 1900)
MAX_DATAGRAM_BYTES: Final = 2048
MAX_XML_BYTES: Final = 128 << 10
MAX_DEPTH: Final = 24
MAX_ELEMENTS: Final = 4000
MAX_TEXT_CHARS: Final = 1024
LEASE_S: Final = 3600
PERMANENT_ONLY: Final = 725
"""The router knows no leases: a mapping stays until it is deleted."""
TAKEN: Final = 718
_DEVICE: Final = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
_SERVICE: Final = re.compile(r"urn:schemas-upnp-org:service:WAN(IP|PPP)Connection:[12]")
_ENVELOPE: Final = (
    '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
    's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:{action} xmlns:u="{service}">'
    "{arguments}</u:{action}></s:Body></s:Envelope>\r\n"
)


@dataclass(frozen=True, slots=True)
class Url:
    """An ``http`` address on a machine known by its number."""

    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Service:
    """Where the router takes orders, and the type of the service there."""

    url: Url
    kind: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """A port that the router shall lead to this machine: the same number outside as inside."""

    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Call:
    """A SOAP call: the header SOAPAction and the body."""

    action: str
    body: bytes


def search() -> bytes:
    """The datagram that asks for routers; they answer within two seconds."""
    return (
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"
        f'MAN: "ssdp:discover"\r\nMX: 2\r\nST: {_DEVICE}\r\n\r\n'
    ).encode()


def found_at(datagram: bytes, sender: str) -> Url | None:
    """Where the description of a router is, by its answer; None for anything else, or elsewhere."""
    if len(datagram) > MAX_DATAGRAM_BYTES or not datagram.startswith(b"HTTP/1.1 200"):
        return None
    for line in datagram.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "location":
            url = _url(value.strip())
            return url if url is not None and url.host == sender else None
    return None


def _url(text: str) -> Url | None:
    try:
        parts = urlsplit(text)
        host, port = str(ipaddress.ip_address(parts.hostname or "")), parts.port or 80
    except ValueError:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    plain = path.isascii() and path.isprintable() and " " not in path
    return Url(host, port, path) if parts.scheme == "http" and plain and len(path) <= MAX_TEXT_CHARS else None


def service_in(description: bytes, at: Url) -> Service | None:
    """The service that maps ports, of a description; None without one. Raises ValueError."""
    base = (
        f"http://[{at.host}]:{at.port}{at.path}" if ":" in at.host else f"http://{at.host}:{at.port}{at.path}"
    )
    kind = ""
    for name, text in _leaves(description):
        if name == "URLBase" and text:
            base = text
        elif name == "serviceType":
            kind = text if _SERVICE.fullmatch(text) else ""
        elif name == "controlURL" and kind:
            url = _url(urljoin(base, text))
            if url is None or url.host != at.host:
                raise ValueError("the router's description leads to another machine")
            return Service(url, kind)
    return None


def add(service: Service, mapping: Mapping, client: str, lease_s: int) -> Call:
    """Lead a port to this machine (`client`, an IPv4 address) for so long; 0: until it is deleted."""
    return _call(
        service,
        "AddPortMapping",
        NewRemoteHost="",
        NewExternalPort=str(mapping.port),
        NewProtocol=mapping.protocol,
        NewInternalPort=str(mapping.port),
        NewInternalClient=str(ipaddress.ip_address(client)),
        NewEnabled="1",
        NewPortMappingDescription="kairos-p2p",
        NewLeaseDuration=str(lease_s),
    )


def delete(service: Service, mapping: Mapping) -> Call:
    """Lead it here no more."""
    return _call(
        service,
        "DeletePortMapping",
        NewRemoteHost="",
        NewExternalPort=str(mapping.port),
        NewProtocol=mapping.protocol,
    )


def _call(service: Service, action: str, **arguments: str) -> Call:
    body = "".join(f"<{name}>{text}</{name}>" for name, text in arguments.items())
    envelope = _ENVELOPE.format(action=action, service=service.kind, arguments=body)
    return Call(f'"{service.kind}#{action}"', envelope.encode())


def fault_in(answer: bytes) -> tuple[int, str]:
    """(errorCode, errorDescription) of a SOAP fault; (0, "") without one. Raises ValueError."""
    code, text = 0, ""
    for name, value in _leaves(answer):
        if name == "errorCode" and value.isascii() and value.isdigit():
            code = int(value[:6])
        elif name == "errorDescription":
            text = value[:80] if value.isprintable() else ""
    return code, text


def _leaves(xml: bytes) -> list[tuple[str, str]]:
    """(name without prefix, text) of all elements, in the order in which they end. Raises ValueError."""
    if len(xml) > MAX_XML_BYTES:
        raise ValueError(f"{len(xml)} bytes of XML")
    found: list[tuple[str, str]] = []
    open_: list[list[str]] = []

    def start(_name: str, _attributes: object) -> None:
        open_.append([])
        if len(open_) > MAX_DEPTH or len(found) >= MAX_ELEMENTS:
            raise ValueError("XML that is too deep or too large")

    def end(name: str) -> None:
        text = "".join(open_.pop()).strip()
        found.append((name.rpartition(":")[2], text))

    def data(text: str) -> None:
        if open_ and sum(map(len, open_[-1])) + len(text) <= MAX_TEXT_CHARS:
            open_[-1].append(text)

    def refuse(*_: object) -> None:
        raise ValueError("XML with a document type")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as exc:
        raise ValueError(f"no XML: {exc}") from exc
    return found
