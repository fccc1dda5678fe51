"""Can this process have a VPN device, and what becomes of its configuration if it can't?

Asked from the kernel: the device file, and the capability to make a device. Where it can't and the nodes
agree on no roles, the node does without (user-space mode): it reaches the mesh, and is reached by its
services. A node of a cluster needs its VPN.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

from p2p_bootstrap.config.loading import Config

TUN: Final = Path("/dev/net/tun")
_STATUS: Final = Path("/proc/self/status")
_NET_ADMIN: Final = 12


def why_no_device(*, device_file: Path = TUN, status: Path = _STATUS) -> str:
    """Why this process can't make a TUN device; "" if it can."""
    try:
        os.close(os.open(device_file, os.O_RDWR))
    except FileNotFoundError:
        return f"there is no {device_file}"
    except OSError as exc:
        return f"{device_file} cannot be used: {(exc.strerror or str(exc)).lower()}"
    try:
        words = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
        capabilities = int(words["CapEff"].strip(), 16)
    except (OSError, KeyError, ValueError):
        return "" if os.geteuid() == 0 else "it does not run as root"
    return (
        ""
        if capabilities >> _NET_ADMIN & 1
        else "this process has no CAP_NET_ADMIN (it does not run as root)"
    )


def settled(config: Config, why: str) -> tuple[Config, str]:
    """The configuration as it can be kept here, and why in user space ("" if not). `why`: no device.

    A node of a cluster, and one that shall have a device, stay as they are: their VPN says what is wrong, and
    comes up once that is mended.
    """
    vpn = config.p2p.vpn
    needed = vpn.mode == "tun" or (config.p2p.auto.enable and vpn.use)
    is_asked = vpn.mode == "userspace"
    if not vpn.create or not (is_asked or (why and not needed)):
        return config, ""
    without = vpn.model_copy(update={"create": False})
    p2p = config.p2p.model_copy(update={"vpn": without})
    return dataclasses.replace(config, p2p=p2p), "p2p.vpn.mode says so" if is_asked else why
