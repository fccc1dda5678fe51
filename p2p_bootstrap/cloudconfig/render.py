"""How is data written as a cloud-config, so that reading gives the same data?

PyYAML's dumper knows YAML 1.1 and quotes what that would misread; texts that `nodes.resolve` would take
for something else are quoted too. The reverse of `document.parse`: ``parse(render(x)) == x``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import yaml

from p2p_bootstrap.cloudconfig.document import HEADERS
from p2p_bootstrap.cloudconfig.nodes import Value, resolve

_NEVER_FOLD: Final = 1 << 30
_SPECIAL_BREAKS: Final = re.compile("[\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Quotes what would not come back as the text it is, and never writes aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve(text), str) and text != "<<" else "'"
    if _SPECIAL_BREAKS.search(text):
        style = '"'  # written as escapes; the emitter would write them raw, and they'd be read as spaces
    elif "\n" in text:
        style = "|"  # the emitter falls back to quotes where a block can't hold the text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def render(data: Mapping[str, Value], *, comment: str = "") -> str:
    """The text of a cloud-config file. `comment`: lines of prose for the top, without ``#``."""
    lines = [HEADERS[0], *(f"# {line}".rstrip() for line in comment.splitlines())]
    body = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_NEVER_FOLD, indent=2
    )
    return "\n".join(lines) + "\n" + (body if data else "")
