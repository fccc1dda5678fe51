"""How do we get packets from the kernel, many at a time and unfinished?

A TUN device with virtio-net headers (IFF_VNET_HDR): with offloads switched on the kernel hands out
super-packets of up to 64 KiB whose segments and checksums are still to be made, and takes them back
likewise. The device exists as long as its descriptor is open. ioctl numbers: Linux
include/uapi/linux/if_tun.h (the same on x86-64 and arm64).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

from p2p_network.core.errors import MeshError
from p2p_network.dataplane.packet import OFFLOAD_CSUM, OFFLOAD_TSO4, OFFLOAD_TSO6, OFFLOAD_USO, VNET_BYTES

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC
_SIOCSIFMTU: Final = 0x8922
_IFF_TUN: Final = 0x1
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000

_CSUM_AND_TSO: Final = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6
_LADDER: Final = (_CSUM_AND_TSO | OFFLOAD_USO, _CSUM_AND_TSO, OFFLOAD_CSUM, 0)
"""What to ask for, in this order: USO came with Linux 6.2."""


def valid_offloads(bits: int) -> int:
    """The largest part of `bits` that the kernel accepts: nothing without CSUM, both USO bits or none."""
    if not bits & OFFLOAD_CSUM:
        return 0
    if bits & OFFLOAD_USO != OFFLOAD_USO:
        bits &= ~OFFLOAD_USO
    return bits & _LADDER[0]


class Tun:
    """An open TUN device. Read and write `fd` (non-blocking): virtio-net header, then the IP packet.

    Attributes:
        fd: the descriptor.
        name: the device's name.
        capability: TUN_F bits the kernel can take.
        offloads: TUN_F bits in force for what the kernel hands out.
    """

    def __init__(self, name: str, fd: int | None = None) -> None:
        """Create the device. Raises MeshError (no root, no /dev/net/tun, name taken).

        `fd`: take this one over that another process created.
        """
        self.name = name
        self.fd = _open_device() if fd is None else fd
        try:
            if fd is None:
                request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
                fcntl.ioctl(self.fd, _TUNSETIFF, request)
            fcntl.ioctl(self.fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_BYTES))
            fcntl.ioctl(self.fd, _TUNSETVNETLE, struct.pack("i", 1))
            self.capability = self.offloads = self._first_accepted()
        except OSError as exc:
            os.close(self.fd)
            raise _refused(name, exc) from exc

    def set_offloads(self, bits: int) -> None:
        """Let the kernel hand out only the unfinished packets that `bits` and `capability` both allow."""
        wanted = valid_offloads(bits & self.capability)
        if wanted != self.offloads:
            fcntl.ioctl(self.fd, _TUNSETOFFLOAD, wanted)
            self.offloads = wanted

    def set_mtu(self, mtu: int) -> None:
        """Set the device's MTU. Raises MeshError."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            try:
                fcntl.ioctl(any_socket, _SIOCSIFMTU, struct.pack("16si20x", self.name.encode(), mtu))
            except OSError as exc:
                raise MeshError(
                    f"cannot set the MTU of {self.name} to {mtu}: {exc.strerror}",
                    hint="choose an MTU between 1280 and 65535",
                ) from exc

    def close(self) -> None:
        """The device goes away."""
        os.close(self.fd)

    def _first_accepted(self) -> int:
        for bits in _LADDER:
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, bits)
            except OSError:
                continue
            return bits
        return 0


def _open_device() -> int:
    try:
        return os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise MeshError(
            "there is no /dev/net/tun on this machine",
            hint="load the kernel module (modprobe tun); in a container pass --device /dev/net/tun",
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.ENXIO):
            raise MeshError(
                "the kernel has no TUN driver behind /dev/net/tun",
                hint="load the kernel module: modprobe tun",
            ) from exc
        raise MeshError(
            f"cannot open /dev/net/tun: {exc.strerror}", hint="run as root, or give the process CAP_NET_ADMIN"
        ) from exc


def _refused(name: str, exc: OSError) -> MeshError:
    if exc.errno == errno.EBUSY:
        return MeshError(
            f"the device {name} is in use by another process",
            hint="another kairos-p2p or VPN runs here: stop it, or choose another device name",
        )
    if exc.errno in (errno.EPERM, errno.EACCES):
        return MeshError(
            f"not permitted to create the device {name}",
            hint="run as root, or give the process CAP_NET_ADMIN",
        )
    if exc.errno == errno.EINVAL:
        return MeshError(
            f"{name} cannot be a TUN device: a device of that name and another kind exists",
            hint=f"choose another device name, or remove it: ip link delete {name}",
        )
    return MeshError(
        f"cannot create the device {name}: {exc.strerror}",
        hint="look into the kernel's log: dmesg",
    )
