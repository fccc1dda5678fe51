"""``hostname`` and ``dns``: what is this machine called, and whom does it ask for names?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import Dns
from p2p_network.core.errors import BootError


@dataclass(frozen=True, slots=True)
class SetHostname:
    """``hostname``: kernel, /etc/hostname, and the line of 127.0.0.1 in /etc/hosts."""

    hostname: str
    place: str

    def describe(self) -> str:
        """See `Action`."""
        return f"set the host name {self.hostname}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        name = context.render(self.hostname, self.place).strip()
        if len(name) > 64 or not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", name):
            hint = "letters, digits and hyphens, at most 64"
            raise BootError(f"{name[:80]!r} is no host name", hint=hint)
        context.root.write("/etc/hostname", f"{name}\n".encode(), 0o644)
        context.root.write("/etc/hosts", hosts(context.root.text("/etc/hosts"), name).encode(), 0o644)
        context.system.set_hostname(name)


def hosts(text: str, name: str) -> str:
    """/etc/hosts with `name` as this machine's; everything else stays."""
    lines = text.splitlines()
    ours = f"127.0.0.1 localhost {name}"
    for number, line in enumerate(lines):
        if line.split()[:1] == ["127.0.0.1"]:
            lines[number] = ours
            break
    else:
        lines.insert(0, ours)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class SetDns:
    """``dns``. A link (such as systemd-resolved's) is replaced, so that the file is ours."""

    spec: Dns

    def describe(self) -> str:
        """See `Action`."""
        return f"write {self.spec.path}: ask {', '.join(self.spec.nameservers)}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        lines = []
        if self.spec.search and self.spec.search != (".",):
            lines.append("search " + " ".join(self.spec.search))
        lines += [f"nameserver {server}" for server in self.spec.nameservers]
        if self.spec.options:
            lines.append("options " + " ".join(self.spec.options))
        if context.root.path(self.spec.path, follow=False).is_symlink():
            context.root.remove(self.spec.path)
        context.root.write(self.spec.path, ("\n".join(lines) + "\n").encode(), 0o644)
