"""Does the JSON Schema say what the loader accepts?"""

from __future__ import annotations

from typing import Any

from p2p_bootstrap.config.names import PASSED_THROUGH, SECTIONS
from p2p_bootstrap.config.schema import schema


def test_every_known_key_is_in_it_and_every_key_of_ours_is_described() -> None:
    document = schema()
    assert set(SECTIONS) | set(PASSED_THROUGH) <= set(document["properties"])
    assert document["else"]["propertyNames"]["enum"] == sorted(document["properties"])
    for name, definition in document["$defs"].items():
        assert definition["additionalProperties"] is False
        if name == "KubeVip":
            continue  # kube-vip's own fields are known by name only
        undescribed = [key for key, value in definition["properties"].items() if "description" not in value]
        assert not undescribed, f"{name}: {undescribed}"


def test_types_ranges_and_words() -> None:
    p2p: dict[str, Any] = schema()["$defs"]["P2P"]["properties"]
    assert p2p["minimum_nodes"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 200}
    assert {"master", "server", "worker", "agent", "none", ""} <= set(p2p["role"]["enum"])
    assert p2p["cluster"]["enum"] == ["mesh", "region"]
    assert p2p["dns"]["type"] == "boolean"
    assert p2p["bootstrap"]["items"]["type"] == "string"
    assert p2p["network_token"]["anyOf"][0]["writeOnly"] is True


def test_stages_are_in_it_through_to_each_step() -> None:
    properties: dict[str, Any] = schema()["properties"]
    stages = properties["stages"]
    assert stages["additionalProperties"] is False
    step = stages["properties"]["boot"]["items"]
    assert step["additionalProperties"] is False
    assert {"if", "files", "datasource", "only_os", "after"} <= set(step["properties"])
    file = step["properties"]["files"]["items"]
    assert file["required"] == ["path"]
    assert "gz+b64" in file["properties"]["encoding"]["enum"]
    user = properties["users"]["items"]["anyOf"][0]
    assert {"name", "ssh_authorized_keys", "lock-passwd"} <= set(user["properties"])
