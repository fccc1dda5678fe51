"""Is nothing but an address and certificates taken out of a kubeconfig that another node handed over?"""

from __future__ import annotations

import base64

import pytest
import yaml

from p2p_roles.k3s.kubeconfig import access_of, context_name, merged

PEM = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n").decode()


def document(server: str = "https://10.144.0.1:6443", **user: object) -> dict:
    return {
        "apiVersion": "v1",
        "clusters": [{"name": "default", "cluster": {"server": server, "certificate-authority-data": PEM}}],
        "users": [
            {"name": "default", "user": {"client-certificate-data": PEM, "client-key-data": PEM, **user}}
        ],
    }


def test_a_context_for_each_cluster_and_nothing_foreign() -> None:
    evil = document(exec={"command": "rm"}, **{"auth-provider": {"name": "x"}, "tokenFile": "/etc/shadow"})
    one = access_of(context_name("kairos/east"), yaml.safe_dump(document()))
    two = access_of(context_name("kairos/west"), yaml.safe_dump(evil))
    again = access_of(context_name("kairos-west"), yaml.safe_dump(document("https://[fd00::1]:6443")))
    text = merged([one, two, again])
    made = yaml.safe_load(text)
    assert made["current-context"] == "kairos-east"
    assert [c["name"] for c in made["contexts"]] == ["kairos-east", "kairos-west", "kairos-west-2"]
    assert [c["cluster"]["server"] for c in made["clusters"]][2] == "https://[fd00::1]:6443"
    for word in ("exec", "auth-provider", "tokenFile"):
        assert word not in text
    assert "PRIVATE" not in repr(one)
    assert PEM not in repr(one).replace(one.ca, "", 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "clusters: []", "x" * 70_000,
        yaml.safe_dump(document("http://10.0.0.1")),
        yaml.safe_dump(document("https://")),
        yaml.safe_dump(document("https://h:99999")),
        yaml.safe_dump(document(**{"client-key-data": "/etc/shadow"})),
        yaml.safe_dump(document(**{"client-key-data": {"a": 1}})),
        "!!python/object/apply:os.system [id]",
    ],
)  # fmt: skip
def test_what_is_no_kubeconfig_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        access_of("x", text)
