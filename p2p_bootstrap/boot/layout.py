"""Which paths of the root are writable, which last, and where do they come from?

Three shell-style files, lowest first: ``cos-layout.env``, ``extra-layout.env``, ``custom-layout.env``
(lists join, single values are replaced), then the cloud-config's ``install.bind_mounts`` and
``install.ephemeral_mounts``, and last what a node must never lose (`ALWAYS`).

Names of overlay and bind directories are those of Kairos for paths without a hyphen; a hyphen is escaped
as systemd does, so ``/a-b`` and ``/a/b`` never share one.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.boot.facts import TextFile, Wishes
from p2p_bootstrap.boot.ports import Policy
from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Node, ScalarNode, find
from p2p_network.core.errors import BootError, nearest

FILES: Final = ("cos-layout.env", "extra-layout.env", "custom-layout.env")
DEFAULT_TARGET: Final = "/usr/local/.state"
DEFAULT_RW: Final = ("/var", "/etc", "/srv")
DEFAULT_OVERLAY: Final = "tmpfs:25%"
DEFAULT_VOLUMES: Final = (("LABEL=COS_OEM", "/oem"), ("LABEL=COS_PERSISTENT", "/usr/local"))
# what a node must never lose: its configuration, identity and ledger, k3s
ALWAYS: Final = ("/etc/kairos-p2p", "/etc/rancher", "/var/lib/kairos-p2p", "/var/lib/rancher")
DEFAULT_PERSISTENT: Final = (
    "/etc/cni", "/etc/iscsi", "/etc/k0s", "/etc/modprobe.d", "/etc/rancher", "/etc/runlevels", "/etc/ssh",
    "/etc/ssl/certs", "/etc/sysconfig", "/etc/systemd", "/etc/zfs", "/home", "/opt", "/root",
    "/var/cores", "/var/lib/ca-certificates", "/var/lib/cni", "/var/lib/containerd",
    "/var/lib/calico", "/var/lib/dbus", "/var/lib/etcd", "/var/lib/extensions", "/var/lib/k0s",
    "/var/lib/kairos", "/var/lib/kairos-p2p", "/var/lib/kubelet", "/var/lib/longhorn",
    "/var/lib/NetworkManager", "/var/lib/rancher", "/var/lib/snapd", "/var/lib/systemd",
    "/var/lib/tailscale", "/var/lib/wicked", "/var/log", "/var/snap",
)  # fmt: skip
NO_WISHES: Final = Wishes()
MAX_PATHS: Final = 1000
_MAX_DIGITS: Final = 6
# what happens to a file that the image and the node both changed; all others: merge
POLICIES: Final[dict[str, Policy]] = {
    "/etc/kairos-p2p": "local", "/etc/rancher": "local", "/var/lib/kairos-p2p": "local",
    "/var/lib/rancher": "local", "/var/lib/containerd": "local", "/var/lib/kubelet": "local",
    "/var/log": "local", "/home": "local",
    "/etc/ssl/certs": "image", "/var/lib/ca-certificates": "image",
}  # fmt: skip
POLICY_NAMES: Final[dict[str, Policy]] = {"merge": "merge", "local": "local", "image": "image"}
# nothing may be mounted over these: the boot itself needs them
RESERVED: Final = ("/", "/proc", "/sys", "/dev", "/run", "/usr/local", "/oem")

_LISTS: Final = {
    "RW_PATHS", "PERSISTENT_STATE_PATHS", "PERSISTENT_STATE_POLICY", "VOLUMES", "CUSTOM_BIND_MOUNTS",
    "CUSTOM_EPHEMERAL_MOUNTS",
}  # fmt: skip
_SINGLE: Final = {"PERSISTENT_STATE_TARGET", "PERSISTENT_STATE_BIND", "OVERLAY", "MERGE"}


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition to be mounted: a selector such as ``LABEL=X`` or a device path, and where."""

    selector: str
    path: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of the new root.

    Attributes:
        rw_paths: writable until the next boot (overlay).
        persistent: paths that last; `bind`: as bind mounts filled from the image, else as overlays whose
            upper layer lasts.
        ephemeral: writable until the next boot, as an overlay of their own.
        policies: ``PERSISTENT_STATE_POLICY="/path=merge|local|image"``, by path.
        target: folder on a persistent volume that holds what lasts.
        overlay: ``tmpfs:SIZE`` or a selector of a device for the overlays' upper layers.
        remarks: what was left out and why, a sentence each.
    """

    rw_paths: tuple[str, ...] = DEFAULT_RW
    persistent: tuple[str, ...] = ALWAYS
    ephemeral: tuple[str, ...] = ()
    target: str = DEFAULT_TARGET
    bind: bool = True
    overlay: str = DEFAULT_OVERLAY
    volumes: tuple[Volume, ...] = tuple(Volume(*v) for v in DEFAULT_VOLUMES)
    policies: tuple[tuple[str, Policy], ...] = tuple(POLICIES.items())
    remarks: tuple[str, ...] = ()


def escape(path: str) -> str:
    """A file name for an absolute path: reversible, so two paths never share one.

    ``/etc/systemd`` becomes ``etc-systemd`` (Kairos's name), ``/a-b`` becomes ``a\\x2db``.
    """
    text = path.strip("/") or "-"
    out = []
    for char in text:
        if char == "/":
            out.append("-")
        elif (char.isascii() and char.isalnum()) or char in "._:":
            out.append(char)
        else:
            out.extend(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    name = "".join(out)
    return f"\\x2e{name[1:]}" if name.startswith(".") else name


def legacy_name(path: str) -> str:
    """The name Kairos gives: every slash a hyphen; two paths may share it."""
    return path.strip("/").replace("/", "-")


def parse_env(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The assignments of a shell-style file, and a sentence for each line that is none."""
    values: dict[str, str] = {}
    remarks: list[str] = []
    for number, line in enumerate(text.splitlines()[:MAX_PATHS], start=1):
        try:
            tokens = shlex.split(line, comments=True)
        except ValueError as exc:
            remarks.append(f"line {number}: {exc}")
            continue
        if tokens[:1] == ["export"]:
            tokens = tokens[1:]
        for token in tokens:
            key, equals, value = token.partition("=")
            if not equals or not key.isidentifier():
                remarks.append(f"line {number}: {token[:60]!r} is no assignment")
                break
            values[key] = value
    return values, tuple(remarks)


def read(
    files: Sequence[TextFile] | None,
    wishes: Wishes = NO_WISHES,
    *,
    mounts: Sequence[str] = (),
    overlay: str = "",
) -> Layout:
    """The layout that the files, the cloud-config and the command line make together.

    Args:
        files: layout files, lowest first; None or empty: the shipped default.
        mounts: the command line's ``rd.*.mount=``.
        overlay: the command line's ``rd.*.overlay=``.

    Raises BootError if two volumes want one place.
    """
    remarks: list[str] = []
    merged: dict[str, str] = {}
    for file in files or ():
        values, complaints = parse_env(file.text)
        remarks += [f"{file.name}: {complaint}" for complaint in complaints]
        for key, value in values.items():
            if key not in _LISTS | _SINGLE:
                near = nearest(key, _LISTS | _SINGLE)
                hint = f"; did you mean {near}?" if near else ""
                remarks.append(f"{file.name}: there is no layout key {key}{hint}")
            merged[key] = f"{merged[key]} {value}" if key in _LISTS and key in merged else value
    paths = _Paths(remarks)
    persistent = merged.get("PERSISTENT_STATE_PATHS", "").split() if merged else list(DEFAULT_PERSISTENT)
    custom = [*merged.get("CUSTOM_BIND_MOUNTS", "").split(), *wishes.bind_mounts]
    ephemeral = [*merged.get("CUSTOM_EPHEMERAL_MOUNTS", "").split(), *wishes.ephemeral_mounts]
    lasting = paths.clean([*persistent, *custom, *ALWAYS])
    for path in (p for p in paths.clean(ephemeral) if p in lasting):
        remarks.append(f"{path} is to be ephemeral and to last: it lasts")
    (target,) = paths.clean([merged.get("PERSISTENT_STATE_TARGET") or DEFAULT_TARGET]) or (DEFAULT_TARGET,)
    merge = _truth(merged.get("MERGE", "true"))
    volumes = [v for text in merged.get("VOLUMES", "").split() if (v := _volume(text, remarks))]
    if not volumes:
        volumes = [Volume(*v) for v in DEFAULT_VOLUMES]
    asked = [v for text in mounts if (v := _volume(text, remarks))]
    return Layout(
        rw_paths=paths.clean(merged["RW_PATHS"].split() if "RW_PATHS" in merged else DEFAULT_RW),
        persistent=lasting,
        ephemeral=tuple(p for p in paths.clean(ephemeral) if p not in lasting),
        target=target,
        bind=_truth(merged.get("PERSISTENT_STATE_BIND", "false")) if merged else True,
        overlay=overlay or merged.get("OVERLAY") or DEFAULT_OVERLAY,
        volumes=_joined(volumes, asked) if merge or not asked else tuple(asked),
        policies=_policies(merged.get("PERSISTENT_STATE_POLICY", ""), remarks),
        remarks=tuple(remarks),
    )


def wishes_of(root: MapNode) -> Wishes:
    """What the boot wants of a cloud-config; what is no text, or no number, is left to the validator."""
    within = find(root, ("p2p", "bless", "within_s"))
    text = within.text if isinstance(within, ScalarNode) else ""
    return Wishes(
        _texts(find(root, ("install", "bind_mounts"))),
        _texts(find(root, ("install", "ephemeral_mounts"))),
        int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None,
    )


def split_overlay(text: str) -> tuple[str, str]:
    """``tmpfs:25%`` -> ("tmpfs", "25%"); anything else is a device: (selector, "")."""
    kind, colon, size = text.partition(":")
    if kind != "tmpfs":
        return text, ""
    digits = size[:-1] if size[-1:] in tuple("%kKmMgG") else size
    if not colon or not (digits.isascii() and digits.isdigit()) or int(digits) == 0:
        raise BootError(
            f"OVERLAY={text} has no size", hint="write it like OVERLAY=tmpfs:25% or OVERLAY=LABEL=NAME"
        )
    return "tmpfs", size


def _texts(node: Node | None) -> tuple[str, ...]:
    if not isinstance(node, ListNode):
        return ()
    return tuple(item.text for item in node.items if isinstance(item, ScalarNode) and not item.is_null)


def _truth(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "y")


def _policies(text: str, remarks: list[str]) -> tuple[tuple[str, Policy], ...]:
    found: dict[str, Policy] = dict(POLICIES)
    for word in text.split():
        path, _, policy = word.rpartition("=")
        if policy in POLICY_NAMES:
            found[path] = POLICY_NAMES[policy]
        else:
            remarks.append(
                f"policy {word!r} is left out: write it like /path=merge, /path=local or /path=image"
            )
    return tuple(found.items())


def _volume(text: str, remarks: list[str]) -> Volume | None:
    selector, colon, path = text.partition(":/")
    if not colon or not selector:
        remarks.append(f"volume {text!r} is left out: it is not written like LABEL=NAME:/path")
        return None
    clean = "/" + posixpath.normpath("/" + path.split(":")[0]).lstrip("/")
    if clean in RESERVED and clean not in ("/usr/local", "/oem"):
        remarks.append(f"volume {text!r} is left out: the boot itself mounts there")
        return None
    return Volume(selector, clean)


def _joined(low: Iterable[Volume], high: Iterable[Volume]) -> tuple[Volume, ...]:
    """One volume for a path: those of `high` win. Two of one level for one path are refused."""
    by_path: dict[str, Volume] = {}
    for level in (low, high):
        seen: dict[str, Volume] = {}
        for volume in level:
            other = seen.setdefault(volume.path, volume)
            if other != volume:
                raise BootError(
                    f"{volume.path} is claimed by two volumes, {other.selector} and {volume.selector}",
                    hint="leave one of them in VOLUMES",
                )
        by_path |= seen
    return tuple(by_path.values())


class _Paths:
    """Checks paths; what can't be used is left out with a remark, never silently."""

    def __init__(self, remarks: list[str]) -> None:
        self._remarks = remarks

    def clean(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Normal forms, sorted so that a parent comes before its children, each once."""
        found: set[str] = set()
        for path in list(paths)[:MAX_PATHS]:
            normal = "/" + posixpath.normpath("/" + path).lstrip("/")
            if not path.startswith("/") or ".." in path.split("/") or "\0" in path or "\n" in path:
                self._remarks.append(f"path {path[:80]!r} is left out: it must be absolute and without ..")
            elif normal in RESERVED:
                self._remarks.append(f"path {normal} is left out: the boot itself mounts there")
            else:
                found.add(normal)
        return tuple(sorted(found, key=lambda p: p.split("/")))
