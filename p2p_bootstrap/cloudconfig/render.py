"""How is a configuration written as a cloud-config, so that reading gives the same?

Plain data and nodes may be mixed. PyYAML's dumper knows YAML 1.1 and quotes what that would misread; texts
that `nodes.resolve` would take for something else are quoted too: ``parse(render(x)) == x``. A node that was
written without quotes is written so again (``permissions: 0600`` is a number to Kairos, ``"0600"`` is none).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import yaml

from p2p_bootstrap.cloudconfig.document import HEADERS
from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, ScalarNode, Value, resolve

_NEVER_FOLD: Final = 1 << 30
_SPECIAL_BREAKS: Final = re.compile("[\x85\u2028\u2029]")
_TEXT: Final = "tag:yaml.org,2002:str"


class _Dumper(yaml.SafeDumper):
    """Quotes what would not come back as the text it is, and never writes aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve(text), str) and text != "<<" else "'"
    if _SPECIAL_BREAKS.search(text):
        style = '"'  # written as escapes; the emitter would write them raw, and they'd be read as spaces
    elif "\n" in text:
        style = "|"  # the emitter falls back to quotes where a block can't hold the text
    return dumper.represent_scalar(_TEXT, text, style=style)


def _scalar(dumper: yaml.SafeDumper, node: ScalarNode) -> yaml.ScalarNode:
    if not node.plain:
        return _text(dumper, node.text)
    tag = dumper.resolve(yaml.ScalarNode, node.text, (True, False))  # type: ignore[no-untyped-call]
    return dumper.represent_scalar(tag, node.text)


def _list(dumper: yaml.SafeDumper, node: ListNode) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", node.items)


def _map(dumper: yaml.SafeDumper, node: MapNode) -> yaml.MappingNode:
    entries = {key: entry.value for key, entry in node.entries.items()}
    return dumper.represent_mapping("tag:yaml.org,2002:map", entries)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(ScalarNode, _scalar)
_Dumper.add_representer(ListNode, _list)
_Dumper.add_representer(MapNode, _map)


def render(data: MapNode | Mapping[str, Value], *, comment: str = "") -> str:
    """The text of a cloud-config file. `comment`: lines of prose for the top, without ``#``."""
    lines = [HEADERS[0], *(f"# {line}".rstrip() for line in comment.splitlines())]
    empty = not (data.entries if isinstance(data, MapNode) else data)
    body = "" if empty else yaml.dump(
        data if isinstance(data, MapNode) else dict(data),
        Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_NEVER_FOLD, indent=2,
    )  # fmt: skip
    return "\n".join(lines) + "\n" + body
