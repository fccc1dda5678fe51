"""What do the plain keys of cloud-init mean as steps?

As Kairos maps them: ``users``, ``write_files`` (``milpa_files``), ``runcmd``, ``growpart`` and
``ssh_authorized_keys`` run in ``boot``; ``hostname`` in ``initramfs``; keys of a forge account
(``github:NAME``) in ``network``. Keys of the whole file go to each of its users, to root if it has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar

from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Mark, Node, Path, ScalarNode
from p2p_bootstrap.stages.model import (
    PRIVATE,
    AbsolutePath,
    Device,
    Encoding,
    Expand,
    File,
    Layout,
    Mode,
    Name,
    Step,
    User,
    key,
)
from p2p_bootstrap.stages.reading import Reader, is_bad

T = TypeVar("T")
FORGES: Final = ("github:", "gitlab:")
_PRIVATE: Final = Mode(PRIVATE)


@dataclass(frozen=True, slots=True)
class PlainUser:
    """An item of ``users``."""

    name: Name
    passwd: str = field(default="", repr=False)
    gecos: str = ""
    homedir: str = ""
    no_create_home: bool = key("no_create_home", "no-create-home", default=False)
    primary_group: str = key("primary_group", "primary-group", default="")
    groups: tuple[str, ...] = ()
    no_user_group: bool = key("no_user_group", "no-user-group", default=False)
    ssh_authorized_keys: tuple[str, ...] = key("ssh_authorized_keys", "ssh-authorized-keys", default=())
    system: bool = False
    no_log_init: bool = key("no_log_init", "no-log-init", default=False)
    shell: str = ""
    lock_passwd: bool = key("lock_passwd", "lock-passwd", default=False)
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class PlainFile:
    """An item of ``write_files``."""

    path: AbsolutePath
    content: str = field(default="", repr=False)
    permissions: Mode = _PRIVATE
    owner: str = ""
    encoding: Encoding = ""


@dataclass(frozen=True, slots=True)
class GrowPart:
    """``growpart``."""

    devices: tuple[str, ...] = ()
    mode: Literal["", "auto", "growpart", "off"] = ""


@dataclass(frozen=True, slots=True)
class PlainStep:
    """A step that a plain key stands for; `label` names it in reports."""

    stage: str
    label: str
    step: Step


def plain_steps(root: MapNode, reader: Reader) -> Iterator[PlainStep]:
    """The steps of the plain keys of one file. What is wrong goes to `reader`."""
    users = _users(root, reader)
    files = [
        File(path=file.path, content=file.content, permissions=file.permissions, encoding=file.encoding,
             owner_string=file.owner)
        for name in ("write_files", "milpa_files")
        for file in _items(root, name, PlainFile, reader)
    ]  # fmt: skip
    commands = tuple(_items(root, "runcmd", str, reader))
    own = {user.name: user.ssh_authorized_keys for user in users}
    shared = tuple(_items(root, "ssh_authorized_keys", str, reader))
    keys = {name: (*more, *shared) for name, more in own.items()} or ({"root": shared} if shared else {})
    near = _keys(keys, forge=False)
    far = _keys(keys, forge=True)
    if users or near:
        named = {user.name: replace(user, ssh_authorized_keys=()) for user in users}
        mark = _mark(root, "users", "ssh_authorized_keys")
        yield PlainStep("boot", "users", Step(mark, users=named, authorized_keys=near))
    if files or commands:  # after the users: a file may belong to one of them
        mark = _mark(root, "write_files", "milpa_files", "runcmd")
        yield PlainStep("boot", "write_files and runcmd", Step(mark, files=tuple(files), commands=commands))
    if far:
        mark = _mark(root, "ssh_authorized_keys", "users")
        yield PlainStep("network", "keys of forge accounts", Step(mark, authorized_keys=far))
    hostname = root.get("hostname")
    if isinstance(hostname, ScalarNode) and reader.check_template(hostname, ("hostname",)):
        yield PlainStep("initramfs", "hostname", Step(hostname.mark, hostname=hostname.text))
    yield from _growpart(root, reader)


def _users(root: MapNode, reader: Reader) -> list[User]:
    users = []
    for item in _items(root, "users", PlainUser, reader):
        users.append(User(**{name: getattr(item, name) for name in PlainUser.__slots__}))
    return users


def _growpart(root: MapNode, reader: Reader) -> Iterator[PlainStep]:
    node = root.get("growpart")
    if node is None:
        return
    grow = reader.read(node, GrowPart, ("growpart",))
    if is_bad(grow) or grow.mode == "off":
        return
    for device in grow.devices:
        layout = Layout(device=Device(path=device), expand_partition=Expand())
        yield PlainStep("boot", f"growpart of {device}", Step(_mark(root, "growpart"), layout=layout))


def _items(root: MapNode, name: str, kind: type[T], reader: Reader) -> Iterator[T]:
    node = root.get(name)
    if node is None:
        return
    if not isinstance(node, ListNode):
        reader.read(node, tuple[str, ...], (name,))
        return
    for number, item in enumerate(node.items):
        path: Path = (name, number)
        if name == "users" and _is_default_user(item):
            continue
        value = reader.read(_joined(item) if name == "runcmd" else item, kind, path)
        if not is_bad(value):
            yield value


def _is_default_user(item: Node) -> bool:
    """cloud-init's ``- default`` stands for the image's own user, who is there already."""
    return isinstance(item, ScalarNode) and item.text == "default"


def _joined(item: Node) -> Node:
    """cloud-init also takes a command as a list of words."""
    if isinstance(item, ListNode) and all(isinstance(word, ScalarNode) for word in item.items):
        words = [word.text for word in item.items if isinstance(word, ScalarNode)]
        return ScalarNode(" ".join("'" + word.replace("'", "'\\''") + "'" for word in words), item.mark)
    return item


def _keys(keys: dict[str, tuple[str, ...]], *, forge: bool) -> dict[str, tuple[str, ...]]:
    chosen = {name: tuple(k for k in some if k.startswith(FORGES) == forge) for name, some in keys.items()}
    return {name: some for name, some in chosen.items() if some}


def _mark(root: MapNode, *names: str) -> Mark:
    return next((root.entries[name].mark for name in names if name in root.entries), root.mark)
