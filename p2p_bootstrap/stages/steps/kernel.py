"""``sysctl`` and ``modules``: what does the kernel get?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.system import check
from p2p_network.core.errors import BootError


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """``sysctl``: one value below /proc/sys. A slash in a key stands for a dot in a file's name."""

    key: str
    value: str

    def describe(self) -> str:
        """See `Action`."""
        return f"set {self.key} = {self.value}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        if not re.fullmatch(r"[A-Za-z0-9_*:-]+([./][A-Za-z0-9_*:-]+)+", self.key):
            raise BootError(f"{self.key[:60]!r} is no kernel setting", hint="such as net.ipv4.ip_forward")
        first = next(sign for sign in self.key if sign in "./")
        swapped = self.key if first == "/" else self.key.translate(str.maketrans("./", "/."))
        path = f"/proc/sys/{swapped}"
        if context.root.is_machine and not context.root.exists(path):
            raise BootError(f"the kernel has no setting {self.key}", hint="load its module first")
        if context.root.text(path).split() != self.value.split():
            context.root.write(path, f"{self.value}\n".encode())


@dataclass(frozen=True, slots=True)
class LoadModule:
    """``modules``: ``NAME`` or ``NAME option=value``."""

    module: str

    def describe(self) -> str:
        """See `Action`."""
        return f"load the kernel module {self.module}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        words = self.module.split()
        if not words or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,=:/-]*", word) for word in words):
            raise BootError(
                f"{self.module[:60]!r} is no kernel module", hint="write NAME or NAME option=value"
            )
        loaded = {line.split(" ")[0] for line in context.root.text("/proc/modules").splitlines()}
        if words[0].replace("-", "_") not in loaded:
            check(context.system.run(["modprobe", *words]), f"modprobe {words[0]}")
