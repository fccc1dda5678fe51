"""What kind of machine is this root on? Reads /etc, /proc and /sys below the root; nothing else.

What is drawn once (`Facts.random`, `Facts.uuid`) comes from a seed in /var/lib/kairos-p2p, readable by
root only; `keep` makes it where there is none. On a root whose /var is not persistent yet it lasts as long
as that /var.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import uuid
from collections.abc import Mapping
from typing import Final

from p2p_bootstrap.cloudconfig.functions import Value
from p2p_bootstrap.stages.facts import Facts, ServiceManager
from p2p_bootstrap.stages.root import Root
from p2p_network.core.errors import BootError

SEED: Final = "/var/lib/kairos-p2p/template.seed"
_SEED_BYTES: Final = 32
_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}
_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARS: Final = 32
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")


def observe(root: Root, *, keep: bool = False) -> Facts:
    """The facts of `root`. `keep`: make the seed of what is drawn once, if there is none."""
    machine_id = _machine_id(root)
    seed = _seed(root, keep=keep)
    release = _assignments(root.text("/etc/os-release") or root.text("/usr/lib/os-release"))
    node = os.uname()
    hostname = node.nodename if root.is_machine else root.text("/etc/hostname").strip()
    managers = frozenset(
        name
        for name, program in (("systemd", "systemctl"), ("openrc", "openrc"))
        for folder in ("/sbin", "/bin", "/usr/sbin", "/usr/bin")
        if root.exists(f"{folder}/{program}")
    )
    return Facts(
        hostname=hostname,
        os_name=release.get("PRETTY_NAME", ""),
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION_ID", ""),
        arch=_ARCH.get(node.machine, node.machine),
        machine=node.machine,
        service_managers=managers,
        service_manager=_running(root, managers),
        machine_id=machine_id,
        protected_id=_keyed(machine_id.encode(), b"yip").hex() if machine_id else None,
        random=_word(_keyed(seed, b"random") + _keyed(seed, b"random 2")) if seed else None,
        uuid=str(uuid.UUID(bytes=_keyed(seed, b"uuid")[:16], version=4)) if seed else None,
        values=_values(root, hostname, machine_id, release),
    )


def _keyed(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


def _word(data: bytes) -> str:
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in data[:_RANDOM_CHARS])


def _machine_id(root: Root) -> str | None:
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        text = root.text(name).strip()
        if _MACHINE_ID.fullmatch(text):
            return text
    return None


def _seed(root: Root, *, keep: bool) -> bytes | None:
    try:
        seed = root.read(SEED)
        if seed is None and keep:
            root.write(SEED, secrets.token_bytes(_SEED_BYTES), 0o600)
            seed = root.read(SEED)
    except (BootError, OSError):
        return None  # not for this user, or no place for it: templates that need it say so
    return seed if seed and len(seed) == _SEED_BYTES else None


def _running(root: Root, managers: frozenset[str]) -> ServiceManager:
    """The one that runs; in a tree that doesn't run, the only one that is installed."""
    if root.exists("/run/systemd/system") and "systemd" in managers:
        return "systemd"
    if root.exists("/run/openrc") and "openrc" in managers:
        return "openrc"
    if managers == {"systemd"}:
        return "systemd"
    return "openrc" if managers == {"openrc"} else ""


def _assignments(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Z_]+)=(?:\"([^\"\n]*)\"|'([^'\n]*)'|(\S*))\s*$", text, re.MULTILINE)
    return {name: double or single or bare for name, double, single, bare in found}


def _values(
    root: Root, hostname: str, machine_id: str | None, release: Mapping[str, str]
) -> Mapping[str, Value]:
    """The names that Kairos's templates have (those of the Go library sysinfo)."""
    node = os.uname()

    def dmi(name: str) -> str | None:
        try:
            return root.text(f"/sys/class/dmi/id/{name}").strip() or None
        except BootError:
            return None  # serial numbers are for root only

    cpus = root.text("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpus, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", root.text("/proc/meminfo"), re.MULTILINE)
    return {
        "node": {"hostname": hostname or None, "machineid": machine_id, "timezone": _timezone(root)},
        "os": {
            "name": release.get("PRETTY_NAME"),
            "vendor": release.get("ID"),
            "version": release.get("VERSION_ID"),
            "release": release.get("VERSION"),
            "architecture": _ARCH.get(node.machine, node.machine),
        },
        "kernel": {"release": node.release, "version": node.version, "architecture": node.machine},
        "product": {name: dmi(f"product_{name}") for name in ("name", "version", "serial", "uuid")}
        | {"vendor": dmi("sys_vendor")},
        "board": {name: dmi(f"board_{name}") for name in ("name", "vendor", "version", "serial")},
        "chassis": {name: dmi(f"chassis_{name}") for name in ("vendor", "version", "serial", "type")},
        "bios": {name: dmi(f"bios_{name}") for name in ("vendor", "version", "date")},
        "cpu": {
            "model": model[1] if model else None,
            "threads": len(re.findall(r"^processor\s*:", cpus, re.M)),
        },
        "memory": {"size": int(memory[1]) // 1024 if memory else None},
        "network": _devices(root, "/sys/class/net", {"macaddress": "address"}),
        "storage": _devices(root, "/sys/block", {"model": "device/model", "serial": "device/serial"}),
    }


def _timezone(root: Root) -> str | None:
    return root.text("/etc/timezone").strip() or None


def _devices(root: Root, folder: str, attributes: Mapping[str, str]) -> list[Value]:
    try:
        names = sorted(os.listdir(root.path(folder)))
    except OSError:
        return []
    found: list[Value] = []
    for name in names:
        if not re.match(r"lo$|loop|ram|zram", name):
            values = {key: _attribute(root, f"{folder}/{name}/{file}") for key, file in attributes.items()}
            found.append({"name": name, **values})
    return found


def _attribute(root: Root, name: str) -> str | None:
    try:
        return root.text(name).strip() or None
    except BootError:
        return None
