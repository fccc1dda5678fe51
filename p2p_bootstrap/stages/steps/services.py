"""``systemctl``, ``timesyncd``, ``systemd_firstboot``, ``environment``: what do services find?

Without systemd, ``enable``, ``disable`` and ``start`` act on OpenRC; ``mask`` takes a service out of every
runlevel, which is the nearest it has. ``systemd_firstboot`` needs systemd and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import Override
from p2p_bootstrap.stages.system import check
from p2p_network.core.errors import BootError

TIMESYNCD: Final = "/etc/systemd/timesyncd.conf.d/10-yip.conf"
Verb = Literal["enable", "disable", "mask", "start"]
_OPENRC: Final[Mapping[str, tuple[str, ...]]] = {
    "enable": ("rc-update", "add"),
    "disable": ("rc-update", "-a", "del"),
    "mask": ("rc-update", "-a", "del"),
    "start": ("rc-service",),
}


@dataclass(frozen=True, slots=True)
class ControlUnit:
    """``systemctl.enable`` and its like, one unit."""

    verb: Verb
    unit: str

    def describe(self) -> str:
        """See `Action`."""
        return f"{self.verb} the service {self.unit}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        match context.facts.service_manager:
            case "systemd":
                argv = ["systemctl", self.verb, self.unit]
            case "openrc":
                name = self.unit.removesuffix(".service")
                argv = [*_OPENRC[self.verb], name, *(["start"] if self.verb == "start" else [])]
            case _:
                what = f"{self.unit}: this system has neither systemd nor OpenRC"
                raise BootError(what, hint="use only_service_manager, or start it in commands")
        ended = context.system.run(argv)
        absent = "not in the runlevel" in ended.output or "is not enabled" in ended.output
        if not (argv[0] == "rc-update" and absent):
            check(ended, " ".join(argv))


@dataclass(frozen=True, slots=True)
class OverrideUnit:
    """``systemctl.overrides``."""

    spec: Override

    def describe(self) -> str:
        """See `Action`."""
        return f"write the drop-in {self.path()}"

    def path(self) -> str:
        """Where it goes."""
        service, name = str(self.spec.service), self.spec.name
        if not re.search(r"\.(service|socket|timer|mount|target|path|slice)$", service):
            service += ".service"
        return f"/etc/systemd/system/{service}.d/{name if name.endswith('.conf') else name + '.conf'}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        if "/" in self.spec.name:
            raise BootError(f"{self.spec.name[:60]!r} is no file name", hint="write it without a folder")
        context.root.write(self.path(), self.spec.content.encode(), 0o644)


@dataclass(frozen=True, slots=True)
class SetTime:
    """``timesyncd``: a drop-in of systemd-timesyncd."""

    values: Mapping[str, str]

    def describe(self) -> str:
        """See `Action`."""
        return f"write {TIMESYNCD}: {', '.join(self.values)}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        merged = dict(_pairs(context.root.text(TIMESYNCD)))
        for key, value in self.values.items():
            if not re.fullmatch(r"[A-Za-z]+", key) or "\n" in value:
                raise BootError(f"{key[:40]!r} is no setting of timesyncd", hint="such as NTP")
            merged[key] = value
        lines = ["[Time]", *(f"{key}={value}" for key, value in merged.items())]
        context.root.write(TIMESYNCD, ("\n".join(lines) + "\n").encode(), 0o644)


@dataclass(frozen=True, slots=True)
class SetEnvironment:
    """``environment``: variables in a file, by default /etc/environment; the others in it stay."""

    values: Mapping[str, str]
    file: str
    place: str

    def describe(self) -> str:
        """See `Action`."""
        return f"set {', '.join(self.values)} in {self.file}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        old = context.root.text(self.file)
        lines = old.splitlines()
        for name, written in self.values.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise BootError(f"{name[:40]!r} is no variable's name", hint="letters, digits and _")
            value = context.render(written, self.place)
            line = f'{name}="{_escaped(value)}"'
            places = [n for n, text in enumerate(lines) if re.match(rf"(export\s+)?{name}=", text)]
            if places:
                lines[places[0]] = line
                lines = [text for n, text in enumerate(lines) if n not in places[1:]]
            else:
                lines.append(line)
        text = "".join(f"{line}\n" for line in lines)
        mode = None if context.root.exists(self.file) else 0o644 if self.file == "/etc/environment" else 0o600
        context.root.write(self.file, text.encode("utf-8", "surrogateescape"), mode)


@dataclass(frozen=True, slots=True)
class FirstBoot:
    """``systemd_firstboot``."""

    values: Mapping[str, str]

    def describe(self) -> str:
        """See `Action`."""
        return f"run systemd-firstboot for {', '.join(sorted(self.values))}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        if not context.system.has("systemd-firstboot"):
            raise BootError(
                "systemd-firstboot is not on this system", hint="use only_service_manager: systemd"
            )
        argv = ["systemd-firstboot", "--force"]
        for key, value in sorted(self.values.items()):
            if not re.fullmatch(r"[A-Za-z][A-Za-z-]*", key):
                raise BootError(f"{key[:40]!r} is no option of systemd-firstboot", hint="such as keymap")
            argv.append(f"--{key.lower()}" if value == "true" else f"--{key.lower()}={value}")
        check(context.system.run(argv), "systemd-firstboot")


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = (line.partition("=") for line in text.splitlines() if "=" in line)
    return [(key.strip(), value.strip()) for key, _, value in parts]


def _escaped(value: str) -> str:
    if "\n" in value or "\0" in value:
        raise BootError("a variable contains a line break", hint="such a file holds one variable a line")
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
