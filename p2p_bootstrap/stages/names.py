"""Which stages are there? Data only; the order is that of a machine's life."""

from __future__ import annotations

import re
from typing import Final

BOOT: Final = ("rootfs", "initramfs", "fs", "boot", "network", "reconcile")
_LIFECYCLE: Final = tuple(
    f"{when}-{what}" for what in ("install", "upgrade", "reset") for when in ("before", "after")
)
_FIXED: Final = (
    *BOOT,
    *_LIFECYCLE,
    "after-install-chroot",
    "after-upgrade-chroot",
    "after-reset-chroot",
    "kairos-install.pre",
    "kairos-install.after",
    *(f"kairos-uki-{what}.{when}" for what in ("install", "upgrade", "reset") for when in ("pre", "after")),
)
PROVIDER: Final = re.compile(r"provider-kairos\.bootstrap\.(before|after)\.[a-z0-9][a-z0-9-]*")
_ROLES: Final = ("master", "worker", "server", "agent")
NAMES: Final = frozenset(
    (
        *_FIXED,
        *(f"{name}.{when}" for name in _FIXED for when in ("before", "after")),
        *(f"provider-kairos.bootstrap.{when}.{role}" for when in ("before", "after") for role in _ROLES),
    )
)


def has_network(name: str) -> bool:
    """Whether the network may be up when a stage runs: not in the early ones of a boot."""
    return name.split(".")[0] not in ("rootfs", "initramfs", "fs", "boot")


def is_known(name: str) -> bool:
    """Whether something runs this stage."""
    return name in NAMES or PROVIDER.fullmatch(name) is not None


def sequence(name: str) -> tuple[str, ...]:
    """What runs when `name` is run: the stage with its ``.before`` and ``.after``; a part runs alone."""
    if name.endswith((".before", ".after")) or name.startswith("provider-kairos."):
        return (name,)
    return (f"{name}.before", name, f"{name}.after")
