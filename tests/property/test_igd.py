"""Is a router understood, and nobody else believed?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network import igd
from p2p_network.igd import Mapping, Service, Url

AT = Url("192.0.2.1", 5000, "/desc.xml")
DESCRIPTION = """<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">{base}
<device><deviceList><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
<controlURL>/no</controlURL></service></serviceList><deviceList><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>x</serviceId>
<controlURL>{control}</controlURL></service></serviceList></device></deviceList></device></deviceList></device></root>"""


def described(control: str = "/ctl/IPConn", base: str = "") -> bytes:
    return DESCRIPTION.format(control=control, base=base).encode()


def test_a_router_is_found_by_its_answer_and_only_on_itself() -> None:
    answer = b"HTTP/1.1 200 OK\r\nST: x\r\nLoCation: http://192.0.2.1:5000/desc.xml\r\n\r\n"
    assert igd.found_at(answer, "192.0.2.1") == AT
    assert igd.found_at(answer, "192.0.2.9") is None, "it leads us to another machine"
    for wrong in (
        b"https://192.0.2.1/",
        b"http://router.lan/d",
        b"file:///etc/passwd",
        b"http://192.0.2.1:99999/",
        b"",
    ):
        assert igd.found_at(b"HTTP/1.1 200 OK\r\nLOCATION: " + wrong + b"\r\n\r\n", "192.0.2.1") is None
    assert igd.found_at(b"NOTIFY * HTTP/1.1\r\nLOCATION: http://192.0.2.1/\r\n\r\n", "192.0.2.1") is None


def test_the_service_that_maps_ports_is_found_in_the_description() -> None:
    kind = "urn:schemas-upnp-org:service:WANIPConnection:1"
    assert igd.service_in(described(), AT) == Service(Url("192.0.2.1", 5000, "/ctl/IPConn"), kind)
    elsewhere = described("ctl", "<URLBase>http://192.0.2.1:80/a/</URLBase>")
    assert igd.service_in(elsewhere, AT) == Service(Url("192.0.2.1", 80, "/a/ctl"), kind)
    assert igd.service_in(b"<root/>", AT) is None
    with pytest.raises(ValueError, match="another machine"):
        igd.service_in(described("http://192.0.2.9/ctl"), AT)


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "document type"),
        (b"<a>" * 99, "too deep"),
        (b"<a>" + b"<b/>" * 5000 + b"</a>", "too large"),
        (b"<a>" + b"x" * (igd.MAX_XML_BYTES + 1), "bytes of XML"),
        (b"<a><b></a>", "no XML"),
        (b"", "no XML"),
    ],
)
def test_xml_that_would_cost_or_lead_astray_is_refused(xml: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        igd.service_in(xml, AT)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_mean_nothing(raw: bytes) -> None:
    igd.found_at(b"HTTP/1.1 200 OK\r\nLOCATION:" + raw, "192.0.2.1")
    for read in (igd.fault_in, lambda xml: igd.service_in(xml, AT)):
        try:
            read(raw)
        except ValueError:
            continue


def test_calls_say_what_is_meant_and_nothing_can_be_smuggled_in() -> None:
    service = igd.service_in(described(), AT)
    assert service is not None
    call = igd.add(service, Mapping("UDP", 4702), "192.168.1.5", 3600)
    assert call.action == '"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping"'
    assert b"<NewExternalPort>4702</NewExternalPort><NewProtocol>UDP</NewProtocol>" in call.body
    assert b"<NewInternalClient>192.168.1.5</NewInternalClient>" in call.body
    assert b"#DeletePortMapping" in igd.delete(service, Mapping("TCP", 1)).action.encode()
    with pytest.raises(ValueError, match="does not appear"):
        igd.add(service, Mapping("TCP", 1), "<x/>", 0)


def test_a_refusal_is_read() -> None:
    fault = (
        b'<s:Envelope xmlns:s="e"><s:Body><s:Fault><detail><UPnPError xmlns="u"><errorCode>718</errorCode>'
        b"<errorDescription>ConflictInMappingEntry</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"
    )
    assert igd.fault_in(fault) == (igd.TAKEN, "ConflictInMappingEntry")
    assert igd.fault_in(b"<ok/>") == (0, "")
