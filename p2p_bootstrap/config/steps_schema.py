"""What may an editor offer inside ``stages`` and the plain keys? JSON Schema, from the steps' own types."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin

from p2p_bootstrap.stages import names
from p2p_bootstrap.stages.model import AbsolutePath, Mode, Pattern, Step
from p2p_bootstrap.stages.plain import GrowPart, PlainFile, PlainUser
from p2p_bootstrap.stages.reading import keys_of

_TEXT: Final = {"type": ["string", "number", "boolean"]}  # a text takes what is written without quotes too
_PLAIN: Final[Mapping[str, Any]] = {
    "users": tuple[PlainUser, ...],
    "write_files": tuple[PlainFile, ...],
    "runcmd": tuple[str, ...],
    "ssh_authorized_keys": tuple[str, ...],
    "growpart": GrowPart,
}


def properties() -> dict[str, Any]:
    """The forms of ``stages`` and of the plain keys that stand for steps, by key."""
    steps = {"type": ["array", "null"], "items": _form(Step)}
    forms: dict[str, Any] = {key: _form(annotation) for key, annotation in _PLAIN.items()}
    # cloud-init's own words, which are taken too
    forms["users"]["items"] = {"anyOf": [forms["users"]["items"], {"const": "default"}]}
    forms["runcmd"]["items"] = {"anyOf": [forms["runcmd"]["items"], {"type": "array", "items": _TEXT}]}
    forms["stages"] = {
        "type": "object",
        "description": "Steps to run in the stages of the boot.",
        "properties": dict.fromkeys(sorted(names.NAMES), steps),
        "patternProperties": {f"^{names.PROVIDER.pattern}$": steps},
        "additionalProperties": False,
    }
    return forms


def _form(annotation: Any) -> dict[str, Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _form(next(part for part in inner if part is not type(None)))
    if origin is tuple:
        return {"type": "array", "items": _form(inner[0])}
    if origin is Literal:
        return {"enum": [word for word in inner if word]}
    if origin is not None:
        return {"type": "object", "additionalProperties": _form(inner[1])}
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _record(annotation)
    if annotation is bool:
        return {"type": "boolean"}
    if annotation is int:
        return {"type": ["integer", "string"], "pattern": "^[0-9]+$"}
    if annotation is Mode:
        return {"type": ["integer", "string"], "pattern": "^0?o?[0-7]{1,5}$"}
    if annotation is AbsolutePath:
        return {"type": "string", "pattern": "^/"}
    if annotation is Pattern:
        return {**_TEXT, "description": "A regular expression."}
    return dict(_TEXT)


def _record(cls: type) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    required = []
    for one in keys_of(cls).values():
        for key in (one.key, *one.also):
            fields[key] = _form(one.annotation)
            if key == "groups":  # cloud-init's documents write them in one line
                fields[key] = {"anyOf": [fields[key], {"type": "string"}]}
        if one.required:
            required.append(one.key)
    form: dict[str, Any] = {"type": "object", "properties": fields, "additionalProperties": False}
    return form | ({"required": required} if required else {})
