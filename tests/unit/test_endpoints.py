"""One way to write a host and a port, and errors that quote nothing."""

from __future__ import annotations

import pytest

from p2p_network.core import endpoints


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:4701", "192.0.2.1", 4701),
        ("[2001:DB8::1]:1", "2001:db8::1", 1),
        ("[::]:65535", "::", 65535),
    ],
)
def test_addresses_are_read_and_written(text: str, host: str, port: int) -> None:
    assert endpoints.split_ip(text) == (host, port)
    assert endpoints.split_ip(endpoints.join(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1", "no port"),
        ("2001:db8::1:4701", "needs brackets"),
        ("[192.0.2.1]:4701", "not an IPv6"),
        (":4701", "host is missing"),
        ("192.0.2.1:0", "not a port"),
        ("192.0.2.1:٤٧", "not a port"),
        ("192.0.2.1:070000", "not a port"),
        ("a.secret:1", "no IP address"),
        ("http://a.secret:1", "URL"),
    ],
)
def test_others_are_refused_and_not_quoted(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        endpoints.split_ip(text)
    assert "secret" not in str(caught.value)


def test_zero_lets_the_kernel_choose_where_that_is_meant() -> None:
    assert endpoints.split_ip("0.0.0.0:0", lowest=0) == ("0.0.0.0", 0)
    assert endpoints.split("seed.example:4701") == ("seed.example", 4701)
