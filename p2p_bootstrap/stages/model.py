"""What may stand in a step? The typed form of every key and condition; `reading` fills it from the document.

Field names are those of the cloud-config, unless `key` says otherwise. The order of `Step`'s actions is the
order in which they run inside a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NewType

from p2p_bootstrap.cloudconfig.nodes import Mark

AbsolutePath = NewType("AbsolutePath", str)
"""A path that begins with /."""
Mode = NewType("Mode", int)
"""Permissions, written in octal."""
Pattern = NewType("Pattern", str)
"""A regular expression."""
Name = NewType("Name", str)
"""A name without spaces, slashes or control characters: a user, a module, a package, a unit."""

Encoding = Literal["", "b64", "base64", "gz", "gzip", "gz+b64", "gz+base64", "gzip+b64", "gzip+base64"]
Provider = Literal[
    "aws", "azure", "gcp", "hetzner", "openstack", "packet", "scaleway", "vultr", "digitalocean", "vmware",
    "cdrom", "nocloud", "config-drive", "file",
]  # fmt: skip
Filesystem = Literal["ext2", "ext3", "ext4", "xfs", "btrfs", "swap", "fat", "fat16", "fat32", "vfat"]

PRIVATE: Final = 0o600
FOLDER: Final = 0o755


def key(name: str, *also: str, **options: Any) -> Any:
    """A field written under another name; `also` are other spellings that Kairos takes."""
    return field(metadata={"key": name, "also": also}, **options)


@dataclass(frozen=True, slots=True)
class Dns:
    """``dns``: /etc/resolv.conf."""

    nameservers: tuple[str, ...]
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    path: AbsolutePath = AbsolutePath("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Download:
    """``downloads``: a file from an address. `timeout_s` 0: no limit. `sha256`: ours, the file's checksum."""

    path: AbsolutePath
    url: str
    permissions: Mode = Mode(PRIVATE)
    owner: int | None = None
    group: int | None = None
    timeout_s: int = key("timeout", default=0)
    owner_string: str = key("owner_string", "ownerstring", default="")
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class GitAuth:
    """``git.auth``."""

    username: str = ""
    password: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    public_key: str = ""
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Git:
    """``git``: a working copy."""

    url: str
    path: AbsolutePath
    branch: str = "master"
    branch_only: bool = False
    auth: GitAuth = field(default_factory=GitAuth)


@dataclass(frozen=True, slots=True)
class Entity:
    """``ensure_entities``, ``delete_entities``: a line of /etc/passwd and its like, as YAML in `entity`."""

    entity: str
    path: AbsolutePath | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """``directories``."""

    path: AbsolutePath
    permissions: Mode = Mode(FOLDER)
    owner: int | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class File:
    """``files``. Unwritten `permissions` are 0600: such files often hold secrets."""

    path: AbsolutePath
    content: str = field(default="", repr=False)
    permissions: Mode = Mode(PRIVATE)
    owner: int | None = None
    group: int | None = None
    encoding: Encoding = ""
    owner_string: str = key("owner_string", "ownerstring", default="")


@dataclass(frozen=True, slots=True)
class User:
    """``users.NAME``. Passwords may be hashes; a plain one is hashed before it is written."""

    name: str = ""
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
class Override:
    """``systemctl.overrides``: a drop-in of a service."""

    service: Name
    content: str
    name: str = "override-yip.conf"


@dataclass(frozen=True, slots=True)
class Systemctl:
    """``systemctl``: units; on OpenRC the runlevels."""

    enable: tuple[Name, ...] = ()
    disable: tuple[Name, ...] = ()
    mask: tuple[Name, ...] = ()
    start: tuple[Name, ...] = ()
    overrides: tuple[Override, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSource:
    """``datasource``: user data of the place this machine runs in; the first provider that has some wins."""

    providers: tuple[Provider, ...]
    path: str = ""
    userdata_name: str = "userdata.yaml"


@dataclass(frozen=True, slots=True)
class Device:
    """``layout.device``: by the label of a partition, or by path (``script://COMMAND`` prints it)."""

    label: str = ""
    path: str = ""
    init_disk: bool = False
    disk_name: str = "YIP_DISK"


@dataclass(frozen=True, slots=True)
class Expand:
    """``layout.expand_partition``: the last one; 0 is all that is free. Sizes are MiB."""

    size: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """``layout.add_partitions``."""

    fs_label: str = key("fsLabel", "fslabel", default="")
    size: int = 0
    p_label: str = key("pLabel", "plabel", default="")
    filesystem: Filesystem = "ext2"
    bootable: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """``layout``: partitions in free space."""

    device: Device
    expand_partition: Expand | None = None
    add_partitions: tuple[Partition, ...] = ()


@dataclass(frozen=True, slots=True)
class Packages:
    """``packages``: by the system's own package program."""

    refresh: bool = False
    upgrade: bool = False
    install: tuple[Name, ...] = ()
    remove: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class UnpackImage:
    """``unpack_images``: the files of a container image."""

    source: str
    target: AbsolutePath
    platform: str = ""


@dataclass(frozen=True, slots=True)
class IfFiles:
    """``if_files``."""

    any: tuple[AbsolutePath, ...] = ()
    all: tuple[AbsolutePath, ...] = ()
    none: tuple[AbsolutePath, ...] = ()


@dataclass(frozen=True, slots=True)
class After:
    """``after``: a step that comes first."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `mark` is where it stands.

    `fatal` is ours: an error in this step ends the stage. Without it the error is kept and reported, and the
    next step runs, as in Kairos.
    """

    mark: Mark
    name: str = ""
    after: tuple[After, ...] = ()
    fatal: bool = False
    # conditions
    node: Pattern = Pattern("")
    if_: str = key("if", default="")
    only_os: Pattern = Pattern("")
    only_os_version: Pattern = Pattern("")
    only_arch: Pattern = Pattern("")
    only_service_manager: Literal["", "systemd", "openrc"] = ""
    if_files: IfFiles | None = None
    # actions, in the order in which they run
    dns: Dns | None = None
    downloads: tuple[Download, ...] = ()
    git: Git | None = None
    ensure_entities: tuple[Entity, ...] = ()
    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()
    commands: tuple[str, ...] = field(default=(), repr=False)
    delete_entities: tuple[Entity, ...] = ()
    hostname: str = ""
    sysctl: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    authorized_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    timesyncd: Mapping[str, str] = field(default_factory=dict)
    systemctl: Systemctl | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment_file: AbsolutePath = AbsolutePath("/etc/environment")
    systemd_firstboot: Mapping[str, str] = field(default_factory=dict, repr=False)
    datasource: DataSource | None = None
    layout: Layout | None = None
    package_pins: Mapping[str, str] = field(default_factory=dict)
    packages: Packages | None = None
    unpack_images: tuple[UnpackImage, ...] = ()


# Fields whose texts may hold templates; `hostname` too.
TEMPLATED: Final = ("if", "content", "commands", "entity", "environment", "hostname", "runcmd")
