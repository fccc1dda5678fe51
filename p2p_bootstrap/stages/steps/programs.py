"""``commands``, ``packages``, ``package_pins``, ``git``: which programs run?

Commands get a shell (``sh -c``) and stop at nothing: each one's error is kept, the next one runs, as in
Kairos. Packages go through the system's own program, never through a shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import Git, Packages
from p2p_bootstrap.stages.system import check
from p2p_network.core.errors import BootError

SHELL: Final = "/bin/sh"
APT_PINS: Final = "/etc/apt/preferences.d/99-yip-pins"
APK_WORLD: Final = "/etc/apk/world"


@dataclass(frozen=True, slots=True)
class RunCommand:
    """One of ``commands``. Its text may hold secrets: reports show where it stands, not what it says."""

    command: str
    place: str

    def describe(self) -> str:
        """See `Action`."""
        return f"run the command at {self.place}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        command = context.render(self.command, self.place)
        ended = context.system.run([SHELL, "-c", command])
        for line in ended.output.splitlines():
            context.say(line)
        check(ended, f"the command at {self.place}")


@dataclass(frozen=True, slots=True)
class _Installer:
    program: str
    refresh: tuple[str, ...]
    upgrade: tuple[str, ...]
    install: tuple[str, ...]
    remove: tuple[str, ...]


_INSTALLERS: Final = (
    _Installer("apt-get", ("-y", "update"), ("-y", "upgrade"), ("-y", "--no-install-recommends", "install"),
               ("-y", "remove")),
    _Installer("dnf", ("makecache",), ("-y", "upgrade"),
               ("-y", "install", "--setopt=install_weak_deps=False"), ("-y", "remove")),
    _Installer("zypper", ("--non-interactive", "refresh"), ("--non-interactive", "update"),
               ("--non-interactive", "install", "--no-recommends"), ("--non-interactive", "remove")),
    _Installer("pacman", ("-Sy", "--noconfirm"), ("-Syu", "--noconfirm"), ("-S", "--noconfirm", "--needed"),
               ("-R", "--noconfirm")),
    _Installer("apk", ("update",), ("upgrade", "--no-cache"), ("add", "--no-cache"), ("del", "--no-cache")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ManagePackages:
    """``packages``: refresh, upgrade, install, remove, in this order."""

    spec: Packages

    def describe(self) -> str:
        """See `Action`."""
        spec = self.spec
        parts = [
            "refresh the package lists" if spec.refresh else "",
            "upgrade all packages" if spec.upgrade else "",
            f"install {', '.join(spec.install)}" if spec.install else "",
            f"remove {', '.join(spec.remove)}" if spec.remove else "",
        ]
        return "; ".join(part for part in parts if part) or "do nothing with packages"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        installer = _installer(context)
        for wanted, arguments, names in (
            (self.spec.refresh, installer.refresh, ()),
            (self.spec.upgrade, installer.upgrade, ()),
            (bool(self.spec.install), installer.install, self.spec.install),
            (bool(self.spec.remove), installer.remove, self.spec.remove),
        ):
            if wanted:
                argv = [installer.program, *arguments, *names]
                ended = context.system.run(argv, env={"DEBIAN_FRONTEND": "noninteractive"})
                check(ended, f"{installer.program} {' '.join(arguments)}")


@dataclass(frozen=True, slots=True)
class PinPackages:
    """``package_pins``: names and the versions that they shall keep."""

    pins: Mapping[str, str]

    def describe(self) -> str:
        """See `Action`."""
        return f"pin {', '.join(f'{name} {version}' for name, version in self.pins.items())}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        for name, version in self.pins.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._:*-]*", name) or not re.fullmatch(
                r"[^\s'\"]+", version
            ):
                raise BootError(f"{name[:40]!r}: no package and version", hint="write NAME: VERSION")
        match _installer(context).program:
            case "apt-get":
                blocks = [
                    f"Package: {n}\nPin: version {v}\nPin-Priority: 1001\n" for n, v in self.pins.items()
                ]
                context.root.write(APT_PINS, "\n".join(blocks).encode(), 0o644)
            case "apk":
                world = {_apk_name(line): line for line in context.root.text(APK_WORLD).splitlines() if line}
                world |= {name: f"{name}={version}" for name, version in self.pins.items()}
                text = "".join(f"{line}\n" for line in world.values())
                context.root.write(APK_WORLD, text.encode(), 0o644)
            case "dnf":
                for name, version in self.pins.items():
                    check(
                        context.system.run(["dnf", "versionlock", "add", f"{name}-{version}"]),
                        "dnf versionlock",
                    )
            case "zypper":
                for name, version in self.pins.items():
                    argv = ["zypper", "--non-interactive", "addlock", f"{name}={version}"]
                    check(context.system.run(argv), "zypper addlock")
            case other:
                raise BootError(f"{other} can't pin packages", hint="pin them in its own configuration")


@dataclass(frozen=True, slots=True)
class CloneGit:
    """``git``: a working copy at the newest commit of a branch. A secret never stands in an argument."""

    spec: Git

    def describe(self) -> str:
        """See `Action`."""
        return f"clone branch {self.spec.branch} into {self.spec.path}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        spec = self.spec
        if not re.match(r"https?://|ssh://|git@|/|file://", spec.url):
            raise BootError("git: this is no address of a repository", hint="begin with https:// or git@")
        if not re.fullmatch(r"(?!-)[A-Za-z0-9_./-]+", spec.branch):
            raise BootError(f"git: {spec.branch[:40]!r} is no branch", hint="letters, digits, - _ . and /")
        if not context.system.has("git"):
            raise BootError("git is not on this system", hint="add it to the image, or use downloads")
        env, key_file = self._access(context)
        try:
            if context.root.exists(f"{spec.path}/.git"):
                self._git(context, env, "-C", spec.path, "remote", "set-url", "origin", spec.url)
            else:
                context.root.make_folder(spec.path)
                self._git(context, env, "init", "-q", spec.path)
                self._git(context, env, "-C", spec.path, "remote", "add", "origin", spec.url)
            wanted = [f"+refs/heads/{spec.branch}:refs/remotes/origin/{spec.branch}"]
            if not spec.branch_only:
                wanted.insert(0, "+refs/heads/*:refs/remotes/origin/*")
            self._git(context, env, "-C", spec.path, "fetch", "-q", "origin", *wanted)
            where = f"refs/remotes/origin/{spec.branch}"
            self._git(context, env, "-C", spec.path, "checkout", "-q", "-f", "-B", spec.branch, where)
        finally:
            if key_file:
                context.root.remove(key_file)

    def _git(self, context: Context, env: Mapping[str, str], *arguments: str) -> None:
        check(context.system.run(["git", *arguments], env=env), f"git for {self.spec.path}")

    def _access(self, context: Context) -> tuple[dict[str, str], str]:
        """Environment for git, and the file with its key (empty if there is none)."""
        auth = self.spec.auth
        env = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/root"}
        settings: list[tuple[str, str]] = [("safe.directory", self.spec.path)]
        key_file = ""
        if auth.private_key:
            key_file = "/run/kairos-p2p/stages/git.key"
            context.root.make_folder("/run/kairos-p2p/stages", 0o700)
            context.root.write(key_file, (auth.private_key.rstrip() + "\n").encode(), 0o600)
            known = "/run/kairos-p2p/stages/git.known_hosts"
            host = urlsplit(self.spec.url).hostname or self.spec.url.partition("@")[2].partition(":")[0]
            if auth.public_key:
                context.root.write(known, f"{host} {auth.public_key.strip()}\n".encode(), 0o600)
            strict = "no" if auth.insecure else "yes" if auth.public_key else "accept-new"
            env["GIT_SSH_COMMAND"] = (
                f"ssh -i {key_file} -o IdentitiesOnly=yes -o StrictHostKeyChecking={strict}"
                + (f" -o UserKnownHostsFile={known}" if auth.public_key else "")
            )
        elif auth.username and self.spec.url.startswith("http"):
            parts = urlsplit(self.spec.url)
            base = f"{parts.scheme}://{parts.netloc}/"
            login = f"{quote(auth.username, safe='')}:{quote(auth.password, safe='')}@"
            settings.append((f"url.{parts.scheme}://{login}{parts.netloc}/.insteadOf", base))
        if auth.insecure:
            settings.append(("http.sslVerify", "false"))
        env["GIT_CONFIG_COUNT"] = str(len(settings))
        for number, (name, value) in enumerate(settings):
            env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        return env, key_file


def _installer(context: Context) -> _Installer:
    for installer in _INSTALLERS:
        if context.system.has(installer.program):
            return installer
    names = ", ".join(one.program for one in _INSTALLERS)
    raise BootError("this system has no package program", hint=f"known are {names}")


def _apk_name(line: str) -> str:
    return re.split(r"[=<>~@]", line.strip(), maxsplit=1)[0]
