"""``users``, ``authorized_keys``, ``ensure_entities``, ``delete_entities``: who may be here?

Works on the files of the root, without ``useradd``: it is the same in the initramfs, on busybox and on a
distribution. A user who is there keeps everything but what the step says about password and keys.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.stages import accounts
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import User
from p2p_bootstrap.stages.passwords import is_hash, sha512_crypt, verify
from p2p_bootstrap.stages.plain import FORGES
from p2p_bootstrap.stages.root import Root
from p2p_network.core.errors import BootError, P2PError

MAX_KEYS_BYTES: Final = 256 * 1024
KEYS_TIMEOUT_S: Final = 15.0
_ADDRESSES: Final = {"github:": "https://github.com/{}.keys", "gitlab:": "https://gitlab.com/{}.keys"}
_KEY: Final = re.compile(
    r"(?:[a-z0-9-]+=|[A-Za-z0-9@.-]+ |.* )?(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+.*"
)


@dataclass(frozen=True, slots=True)
class EnsureUser:
    """``users``."""

    name: str
    spec: User

    def describe(self) -> str:
        """See `Action`."""
        return f"make sure of the user {self.name}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        root = context.root
        accounts.check_name(self.name)
        found = accounts.account(root.text(accounts.PASSWD), self.name)
        if found is None:
            self._create(root)
        elif self.spec.passwd or self.spec.lock_passwd:
            self._set_password(root)
        self._join_groups(root)
        if self.spec.ssh_authorized_keys:
            AuthorizeKeys(self.name, self.spec.ssh_authorized_keys).execute(context)

    def _create(self, root: Root) -> None:
        spec = self.spec
        defaults = _defaults(root)
        home = spec.homedir or f"{defaults.get('HOME') or '/home'}/{self.name}"
        passwd, group = root.text(accounts.PASSWD), root.text(accounts.GROUP)
        old_home = root.path(home)
        owner = old_home.stat().st_uid if old_home.is_dir() and old_home.stat().st_uid else None
        uid = spec.uid if spec.uid is not None else accounts.free_id(passwd, system=spec.system, wanted=owner)
        gid = self._primary_group(group, uid)
        group_name = spec.primary_group or self.name
        if accounts.find(group, group_name) is None and not spec.no_user_group:
            root.write(accounts.GROUP, accounts.put(group, [group_name, "x", str(gid), ""]).encode(), 0o644)
        shell = spec.shell or defaults.get("SHELL") or "/bin/sh"
        line = [self.name, "x", str(uid), str(gid), spec.gecos, home, shell]
        self._set_password(root)  # before the account exists, so that it never exists without
        root.write(accounts.PASSWD, accounts.put(passwd, line).encode(), 0o644)
        if not spec.no_create_home and not (spec.system and not spec.homedir):
            root.make_folder(home, 0o700 if not old_home.is_dir() else None, (uid, gid))

    def _primary_group(self, group: str, uid: int) -> int:
        if self.spec.primary_group:
            gid = accounts.group_id(group, self.spec.primary_group)
            if gid is None:
                raise BootError(
                    f"{self.name}: there is no group {self.spec.primary_group}", hint="add it to the image"
                )
            return gid
        found = accounts.group_id(group, self.name)
        if found is not None and not self.name.isdigit():
            return found
        if self.spec.no_user_group:
            return accounts.group_id(group, "users") or 100
        return accounts.free_id(group, system=self.spec.system, wanted=uid)

    def _set_password(self, root: Root) -> None:
        shadow = root.text(accounts.SHADOW)
        row = accounts.find(shadow, self.name)
        old = row[1] if row and len(row) > 1 else ""
        if self.spec.lock_passwd or not self.spec.passwd:
            new = "!"
        elif is_hash(self.spec.passwd):
            new = self.spec.passwd
        else:
            new = old if verify(self.spec.passwd, old) else _hashed(self.spec.passwd)
        if new == old:
            return
        day = str(int(time.time() // 86400))
        rest = [*row[3:], *[""] * 6][:6] if row else ["0", "99999", "7", "", "", ""]
        line = [self.name, new, day, *rest]
        root.write(accounts.SHADOW, accounts.put(shadow, line).encode(), _shadow_mode(root))

    def _join_groups(self, root: Root) -> None:
        group = wanted = root.text(accounts.GROUP)
        missing: list[str] = []
        for name in self.spec.groups:
            try:
                wanted = accounts.add_member(wanted, name, self.name)
            except BootError:
                missing.append(name)
        if wanted != group:
            root.write(accounts.GROUP, wanted.encode(), 0o644)
        if missing:
            hint = "add the group to the image, or remove it here"
            raise BootError(f"{self.name}: there is no group {', '.join(missing)}", hint=hint)


@dataclass(frozen=True, slots=True)
class AuthorizeKeys:
    """``authorized_keys``: SSH keys of one user; ``github:NAME``, ``gitlab:NAME`` and https addresses too."""

    user: str
    keys: tuple[str, ...]

    def describe(self) -> str:
        """See `Action`."""
        return f"authorize {len(self.keys)} SSH keys for {self.user}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        root = context.root
        account = accounts.account(root.text(accounts.PASSWD), self.user)
        if account is None:
            raise BootError(f"there is no user {self.user}", hint="create it in an earlier step")
        folder = f"{account.home}/.ssh"
        file = f"{folder}/authorized_keys"
        lines = root.text(file).splitlines()
        failures: list[P2PError] = []
        for key in self.keys:
            try:
                lines += [line for line in _lines_of(key, context) if line not in lines]
            except P2PError as exc:
                failures.append(exc)
        owner = (account.uid, account.gid)
        root.make_folder(folder, 0o700, owner)
        root.write(
            file, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"), 0o600, owner
        )
        if failures:
            messages = "; ".join(exc.message for exc in failures)
            raise BootError(f"{self.user}: {messages}", hint=failures[0].hint)


def _lines_of(key: str, context: Context) -> Sequence[str]:
    address = key if key.startswith("https://") else ""
    for forge in FORGES:
        if key.startswith(forge):
            name = key.removeprefix(forge)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}", name):
                raise BootError(f"{name[:40]!r} is no account name", hint=f"write {forge}NAME")
            address = _ADDRESSES[forge].format(name)
    if not address:
        if not _KEY.fullmatch(key.strip()):
            raise BootError(
                "a key is no SSH public key", hint="it begins with ssh-ed25519, ssh-rsa, ecdsa-… "
            )
        return [key.strip()]
    text = context.system.fetch(address, MAX_KEYS_BYTES, KEYS_TIMEOUT_S).decode("utf-8", "replace")
    found = [line.strip() for line in text.splitlines() if _KEY.fullmatch(line.strip())]
    if not found:
        raise BootError(f"{address} has no SSH public key", hint="check the account")
    return found


def _hashed(password: str) -> str:
    salt = base64.b64encode(secrets.token_bytes(12), altchars=b"./").decode()
    return sha512_crypt(password, salt)


def _defaults(root: Root) -> Mapping[str, str]:
    lines = (line.partition("=") for line in root.text("/etc/default/useradd").splitlines())
    return {key.strip(): value.strip().strip("\"'") for key, sign, value in lines if sign}


def _shadow_mode(root: Root) -> int | None:
    """0600 for a new file; a distribution's own (0640 root:shadow) is kept."""
    return None if root.exists(accounts.SHADOW) else 0o600
