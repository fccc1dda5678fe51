"""What may an editor offer and mark while someone writes a cloud-config? JSON Schema, draft 2020-12.

Made from the model, so the two can't differ. The keys that others act on are named without a form. For use
in an editor: ``# yaml-language-server: $schema=<file>`` below the header.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field, create_model

from p2p_bootstrap.config import steps_schema
from p2p_bootstrap.config.fields import Hostname
from p2p_bootstrap.config.model import MODELS
from p2p_bootstrap.config.names import BUNDLES, CLOUD_INIT_ONLY, KUBE_VIP_FIELDS, PASSED_THROUGH

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The JSON Schema of a cloud-config."""
    fields: dict[str, Any] = {
        # pydantic wants names that are identifiers; the alias is the key
        key.replace("-", "_"): (model | None, Field(default=None, alias=key, description=_first_line(model)))
        for key, model in MODELS.items()
    }
    fields["hostname"] = (Hostname | None, Field(default=None, description="Host name; may be a template."))
    document: dict[str, Any] = create_model("CloudConfig", **fields).model_json_schema(mode="validation")
    document["$defs"]["KubeVip"]["properties"] |= {name: {} for name in sorted(KUBE_VIP_FIELDS)}
    properties = document["properties"]
    for key, description in PASSED_THROUGH.items():
        properties[key] = {"description": f"Kairos: {description}."}
    for key, form in steps_schema.properties().items():
        properties[key] = {"description": properties[key]["description"], **form}
    for key in sorted(BUNDLES):
        properties.setdefault(key, {"description": "Settings of a community bundle."})
    for key in sorted(CLOUD_INIT_ONLY):
        properties.setdefault(key, {"description": "cloud-init: Kairos takes no part in this key."})
    return {
        "$schema": DIALECT,
        "title": "kairos-p2p cloud-config",
        "description": "The keys of p2p, k3s and k3s-agent are kairos-p2p's; the others Kairos acts on.",
        "type": "object",
        "properties": properties,
        # a bundle may read a block of any name, so only without bundles is every other key a mistake
        "if": {
            "anyOf": [
                _requires("bundles"),
                {"properties": {"install": _requires("bundles")}} | _requires("install"),
            ]
        },
        "else": {"propertyNames": {"enum": sorted(properties)}},
        "$defs": document["$defs"],
    }


def _requires(key: str) -> dict[str, Any]:
    return {"required": [key]}


def _first_line(model: type) -> str:
    return (model.__doc__ or "").partition("\n")[0]
