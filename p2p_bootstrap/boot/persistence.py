"""Where does what lasts lie, how did it get there, and is it still what we left?

On the persistent volume, in the layout's target (``/usr/local/.state``)::

    etc-systemd.bind/                      content of /etc/systemd
    .kairos-p2p/manifests/etc-systemd.json the image's tree at the last merge, and the folder's canary
    .kairos-p2p/conflicts/etc-systemd/...  what lost in a conflict; `conflicts.json`: the report
    machine-id

A folder is filled under another name, made durable, then renamed; its manifest comes last. So an
interruption at any moment is either invisible or begun again. A folder whose manifest says that it was
filled, but which is gone or lacks its canary, is never taken for an empty one: the boot fails instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from p2p_bootstrap.boot import files, merge3, syscalls
from p2p_bootstrap.boot.merge3 import Item
from p2p_bootstrap.boot.ports import BindRequest, CanaryRequest
from p2p_network.core.errors import BootError

OURS: Final = ".kairos-p2p"
CANARY_ATTRIBUTE: Final = "trusted.kairos_p2p.canary"
_CHUNK_BYTES: Final = 1 << 20
RESET: Final = "restore the partition from a backup, or, if its content may go, reset this node from recovery"


def prepare(request: BindRequest) -> tuple[str, ...]:
    """Make the folder ready to be mounted. Returns a remark for each conflict. Raises BootError, OSError."""
    state, folder = Path(request.state), Path(request.state, request.name)
    image = Path(request.image_path)
    if image.exists() and not image.is_dir():
        raise BootError(f"{request.path} is no directory in the image", hint="only directories can be kept")
    manifests = state / OURS / "manifests"
    manifests.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = manifests / f"{request.name.removesuffix('.bind')}.json"
    manifest = files.read_map(path)
    if manifest is None:
        new = scan(image)
        remarks: tuple[str, ...] = ()
        if folder.is_dir() or _adopt(state, request):
            remarks = _merge(request, {}, new)
        else:
            _fill(image, folder)
        _write_manifest(path, request.identity, _stamp(folder), new)
        return remarks
    canary = str(manifest.get("canary", ""))
    _check_canary(folder, canary, request.path)
    pending = _items(manifest, path, "pending")
    if request.identity and manifest.get("identity") == request.identity and "pending" not in manifest:
        return ()
    base, new = _items(manifest, path, "items"), scan(image)
    if "pending" in manifest:
        base = merge3.resumed_base(base, pending, scan(folder, base.keys() | pending.keys()))
    _write_manifest(path, str(manifest.get("identity", "")), canary, base, pending=new)
    remarks = _merge(request, base, new)
    _write_manifest(path, request.identity, canary, new)
    return remarks


def check_canary(request: CanaryRequest) -> str:
    """Prove that the persistent partition is ours. Returns a remark. Raises BootError."""
    persistent = Path(request.persistent, OURS, "canary")
    memory = Path(request.oem, OURS, "persistent") if request.oem else None
    found = files.read_text(persistent, 100).strip()
    expected = files.read_text(memory, 100).strip() if memory else ""
    if expected and not found:
        raise BootError(
            f"the persistent partition on {request.persistent} is empty, or another one: it lacks its canary",
            hint=RESET,
        )
    if expected and found != expected:
        raise BootError(
            f"the file system on {request.persistent} belongs to another installation: its canary is strange",
            hint="unplug the disk that does not belong here; " + RESET,
        )
    remark = ""
    if not found:
        found = secrets.token_hex(16)
        persistent.parent.mkdir(mode=0o700, exist_ok=True)
        files.replace(persistent, f"{found}\n".encode())
        remark = "the persistent partition is new: its canary was written"
    if memory and not expected:
        memory.parent.mkdir(mode=0o700, exist_ok=True)
        files.replace(memory, f"{found}\n".encode())
    return remark


def machine_id(state: Path) -> Path:
    """The file of the machine's id; made at the first call ever."""
    path = state / "machine-id"
    text = files.read_text(path, 100).strip()
    if len(text) == 32 and all(c in "0123456789abcdef" for c in text):
        return path
    if text:
        raise BootError(f"{path} is damaged", hint="put the machine's id there again: 32 hexadecimal digits")
    files.replace(path, f"{secrets.token_hex(16)}\n".encode(), 0o444)
    return path


def scan(root: Path, only: Iterable[str] | None = None) -> dict[str, Item]:
    """The tree below `root`, or of it only the paths named. Nothing is followed, nothing crosses a mount."""
    found: dict[str, Item] = {}
    if only is not None:
        for name in only:
            if (item := _item(root / name)) and not _through_link(root, name):
                found[name] = item
        return found
    if not root.is_dir():
        return found
    device = root.stat().st_dev
    for parent, folders, names in os.walk(root):
        folders[:] = [n for n in folders if os.lstat(os.path.join(parent, n)).st_dev == device]
        for name in (*folders, *names):
            path = Path(parent, name)
            if item := _item(path):
                found[str(path.relative_to(root))] = item
    return found


def _through_link(root: Path, name: str) -> bool:
    return any((root / parent).is_symlink() for parent in list(Path(name).parents)[:-1])


def _item(path: Path) -> Item | None:
    try:
        status = os.lstat(path)
        mode = stat.S_IMODE(status.st_mode)
        owner, group = status.st_uid, status.st_gid
        if stat.S_ISREG(status.st_mode):
            return Item("file", mode, owner, group, _digest(path))
        if stat.S_ISDIR(status.st_mode):
            return Item("folder", mode, owner, group)
        if stat.S_ISLNK(status.st_mode):
            return Item("link", 0o777, owner, group, os.readlink(path))
        return Item("other", mode, owner, group, f"{stat.S_IFMT(status.st_mode):o} {status.st_rdev}")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def copy_item(source: Path, target: Path) -> None:
    """Copy one item with owner, mode, times and attributes; a file appears whole or not at all."""
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            target.unlink()
        target.mkdir(exist_ok=True)
        shutil.copystat(source, target)
        os.chown(target, status.st_uid, status.st_gid)
        os.chmod(target, stat.S_IMODE(status.st_mode))
        return
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.new")
    try:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), temporary)
        elif stat.S_ISREG(status.st_mode):
            shutil.copyfile(source, temporary)
        else:
            os.mknod(temporary, status.st_mode, status.st_rdev)
        os.chown(temporary, status.st_uid, status.st_gid, follow_symlinks=False)
        shutil.copystat(source, temporary, follow_symlinks=False)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _fill(image: Path, folder: Path) -> None:
    """First use: a copy of the image's folder, complete and durable before it has its name."""
    filling = folder.with_name(f".{folder.name}.filling")
    if filling.exists():
        shutil.rmtree(filling)
    try:
        filling.mkdir(mode=0o755)
        for path in sorted(scan(image)):
            copy_item(image / path, filling / path)
        if image.is_dir():
            copy_item(image, filling)
        syscalls.syncfs(str(filling))
        os.rename(filling, folder)
    except BaseException:
        shutil.rmtree(filling, ignore_errors=True)
        raise
    files.sync_folder(folder.parent)


def _adopt(state: Path, request: BindRequest) -> bool:
    """Take over the folder that Kairos filled, if its name can only mean this path."""
    old = state / request.legacy
    if not request.legacy or not old.is_dir():
        return False
    os.rename(old, state / request.name)
    files.sync_folder(state)
    return True


def _merge(request: BindRequest, base: dict[str, Item], new: dict[str, Item]) -> tuple[str, ...]:
    folder, image = Path(request.state, request.name), Path(request.image_path)
    local = scan(folder, base.keys() | new.keys())
    for path, item in new.items():
        if item.kind != "folder" and path in local and local[path].kind == "folder":
            local |= {f"{path}/{below}": one for below, one in scan(folder / path).items()}
    outcome = merge3.merge(base, new, local, request.policy)
    aside = Path(request.state, OURS, "conflicts", request.name.removesuffix(".bind"))
    for conflict in outcome.conflicts:
        loser = image if conflict.kept == "local" else folder
        _keep_aside(loser / conflict.path, aside / conflict.path)
    for change in outcome.changes:
        target = folder / change.path
        if change.verb == "take":
            copy_item(image / change.path, target)
        elif target.is_dir() and not target.is_symlink():
            try:
                target.rmdir()
            except OSError:
                continue  # it holds something of the node's own
        else:
            target.unlink(missing_ok=True)
    if outcome.changes:
        syscalls.syncfs(str(folder))
    return tuple(
        f"{request.path}/{conflict.path} was changed by the image and by this node; "
        f"kept: the {conflict.kept}'s (the other is in {aside})"
        for conflict in outcome.conflicts
    )


def _keep_aside(source: Path, target: Path) -> None:
    if not source.is_symlink() and not source.exists():
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        return
    copy_item(source, target)


def _stamp(folder: Path) -> str:
    """Give the folder its canary; "" where the file system has no extended attributes."""
    canary = secrets.token_hex(16)
    try:
        os.setxattr(folder, CANARY_ATTRIBUTE, canary.encode())
    except OSError:
        return ""
    return canary


def _check_canary(folder: Path, canary: str, path: str) -> None:
    if not folder.is_dir():
        raise BootError(f"what {path} kept is gone: {folder} was filled once and is no more", hint=RESET)
    if not canary:
        return
    try:
        found = os.getxattr(folder, CANARY_ATTRIBUTE).decode("ascii", "replace")
    except OSError:
        found = ""
    if found != canary:
        raise BootError(f"what {path} kept is not there: {folder} lacks its canary", hint=RESET)


def _write_manifest(
    path: Path, identity: str, canary: str, items: dict[str, Item], pending: dict[str, Item] | None = None
) -> None:
    """`pending`: the tree of the image that is just being merged, written ahead."""
    document: dict[str, Any] = {"identity": identity, "canary": canary, "items": _plain(items)}
    if pending is not None:
        document["pending"] = _plain(pending)
    files.replace(path, json.dumps(document).encode())


def _plain(items: dict[str, Item]) -> dict[str, Any]:
    return {path: astuple(item) for path, item in items.items()}


def _items(manifest: dict[str, Any], path: Path, key: str) -> dict[str, Item]:
    try:
        return {str(name): Item(*fields) for name, fields in manifest.get(key, {}).items()}
    except (TypeError, AttributeError):
        raise BootError(f"{path} is damaged", hint=RESET) from None
