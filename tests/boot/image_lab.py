"""An image with everything in it: Debian's systemd, OpenRC, busybox, Python, our program, a stand-in k3s.

Made of what this machine has: the files of its installed Debian packages, the interpreter that runs the tests
with its libraries. What does not change between runs is kept in ``~/.cache/kairos-p2p-tests`` (or
`BOOT_TEST_CACHE`); OpenRC, which can't be installed beside systemd, is fetched by ``apt-get download``.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from boot_lab import BUSYBOX, run

ROOT = Path(__file__).resolve().parents[2]
OUR_PACKAGES = (
    ROOT / "p2p_bootstrap", ROOT / "network/p2p_network", ROOT / "roles/p2p_roles",
    ROOT / "simulations/p2p_simulations",
)  # fmt: skip
DEBIAN = (
    "base-files", "bash", "coreutils", "dash", "grep", "iproute2", "kmod", "login", "mount", "passwd",
    "procps", "sed", "systemd", "systemd-sysv", "udev", "util-linux",
)  # fmt: skip
NOT_NEEDED = {"perl-base", "debconf", "dpkg", "adduser", "tar", "gcc-12-base", "libdb5.3", "base-passwd"}
OPENRC = ("openrc", "libeinfo1", "librc1")
BULK = re.compile(
    r"/usr/share/(doc|man|locale|info|lintian|bash-completion|zsh|bug|perl5|polkit-1|pam-configs|zoneinfo)/"
    r"|/usr/lib/udev/hwdb|/lib/udev/hwdb|/usr/lib/(modules|firmware|sysv|systemd/system-generators/.*sysv)"
    r"|system-generators/systemd-sysv-generator|/lib/systemd/catalog|/usr/lib/systemd/catalog|/etc/(init|rcS)\.d"
)
DEV_TOOLS = re.compile(
    r"(mypy|ruff|pip|setuptools|pkg_resources|hypothesis|_pytest|pytest|grimp|importlinter|hatchling|mypyc|librt"
    r"|pygments|examples|tests|ast_serialize|[0-9a-f]{20}__mypyc|_hypothesis|editables|pathspec|_distutils"
    r"|__editable__|_editable|_kairos|kairos_p2p|p2p_|grpc_tools|.*\.pth$|types_)"
)
LIBRARY = re.compile(r"=>\s+(/\S+)\s+\(0x")
VERSION = 3  # of what this file makes
FOLDERS = (
    "dev", "proc", "sys", "run", "tmp", "oem", "srv", "root", "home", "opt", "usr/local", "var/log", "mnt",
    "var/lib", "var/tmp", "etc/rancher", "system/oem", "var/lib/kairos-p2p", "var/lib/rancher",
)  # fmt: skip


def why_not() -> str:
    """Why no such image can be made here; "" if it can."""
    if not shutil.which("dpkg-query"):
        return "the image is made of Debian's packages, and this is no Debian"
    installed = _installed()
    if missing := [name for name in DEBIAN if name not in installed]:
        return f"these packages are not installed here: {', '.join(missing)}"
    return ""


def cache() -> Path:
    """Where what is made once is kept."""
    return Path(os.environ.get("BOOT_TEST_CACHE") or Path.home() / ".cache/kairos-p2p-tests")


def make(folder: Path) -> Path:
    """A fresh root tree in `folder`, with our program as it is now."""
    base = _base()
    tree = folder / "image"
    run("cp", "-al", base, tree)  # links: nothing below may be changed in place, only added
    site = tree / "usr/lib" / _python() / "site-packages"
    for package in OUR_PACKAGES:
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        _compile(site / package.name, site, tree)
    for name, module in (("kairos-p2p", "p2p_bootstrap.cli.main"), ("k3s", "p2p_simulations.k3s.__main__")):
        program = tree / "usr/bin" / name
        program.write_text(
            f"#!/usr/bin/python3 -I\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
    return tree


def _python() -> str:
    return f"python{sys.version_info[0]}.{sys.version_info[1]}"


def _base() -> Path:
    """What does not change with our sources; made once."""
    lock = (ROOT / "requirements.lock").read_bytes()
    parts = (VERSION, sys.version, sys.prefix, _installed(), Path(__file__).read_bytes(), lock)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    done = cache() / f"image-{key}"
    if not done.exists():
        for old in cache().glob("image-*"):
            shutil.rmtree(old)
        fresh = cache() / f".image-{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir(parents=True)
            _fill(fresh)
            fresh.rename(done)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return done


def _fill(tree: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for name in FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    for package in _closure(DEBIAN):
        _copy(_files_of(package), tree)
    _openrc(tree)
    shutil.copy(BUSYBOX, tree / "usr/bin/busybox")
    init = tree / "usr/lib/busybox/init"  # busybox does what it is called
    init.parent.mkdir()
    init.symlink_to("../../bin/busybox")
    for name in run(BUSYBOX, "--list").split():
        places = [tree / "usr" / folder / name for folder in ("bin", "sbin")]
        if not any(place.exists() or place.is_symlink() for place in places):
            places[0].symlink_to("busybox")
    for name in ("passwd", "group"):
        shutil.copy(f"/usr/share/base-passwd/{name}.master", tree / "etc" / name)
    (tree / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    (tree / "etc/shadow").chmod(0o600)
    (tree / "etc/hostname").write_text("unnamed\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/fstab").write_text("")
    _python_tree(tree)
    run("ldconfig", "-r", tree)


def _installed() -> dict[str, str]:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}\t${db:Status-Abbrev}\t${Version}\n"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {name: version for name, state, version in rows if state.startswith("ii")}


def _closure(names: Iterable[str]) -> list[str]:
    """The packages and what they depend on, as installed here."""
    listing = run("dpkg-query", "-W", "-f", "${Package}\t${Depends}, ${Pre-Depends}\n")
    needs = {line.split("\t")[0]: line.split("\t")[1] for line in listing.splitlines()}
    found: list[str] = []
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found or name in NOT_NEEDED or name not in needs:
            continue
        found.append(name)
        for group in needs[name].split(","):
            choices = [re.split(r"[ (:]", choice.strip())[0] for choice in group.split("|")]
            todo += [choice for choice in choices if choice in needs][:1]
    return found


def _files_of(package: str) -> list[str]:
    return [line for line in run("dpkg-query", "-L", package).splitlines() if line.startswith("/")]


def _copy(paths: Iterable[str], tree: Path) -> None:
    for path in paths:
        source = Path(path)
        if BULK.search(path) or not (source.is_file() or source.is_symlink()):
            continue
        if source.is_symlink() and source.is_dir() and (tree / path.lstrip("/")).is_dir():
            continue
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() or target.is_symlink()):
            shutil.copy2(source, target, follow_symlinks=False)


def _openrc(tree: Path) -> None:
    """OpenRC, if it can be had; the test of it is skipped otherwise."""
    debs = cache() / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    missing = [name for name in OPENRC if not list(debs.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-qq", *missing], cwd=debs, capture_output=True, check=False)
    found = [deb for name in OPENRC for deb in debs.glob(f"{name}_*.deb")]
    if len(found) != len(OPENRC):
        return
    unpacked = tree / ".openrc"
    for deb in found:
        run("dpkg", "-x", deb, unpacked)
    for source in sorted(unpacked.rglob("*")):
        target = tree / source.relative_to(unpacked)
        if (source.is_file() or source.is_symlink()) and "usr/share" not in str(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy2(source, target, follow_symlinks=False)
    shutil.rmtree(unpacked)


def _python_tree(tree: Path) -> None:
    """The interpreter of the tests, its standard library, and the libraries of its environment."""
    home = tree / "usr/lib" / _python()
    stdlib = Path(sysconfig.get_path("stdlib"))
    leave = shutil.ignore_patterns(
        "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3",
        "__pycache__", "config-*", "pydoc_data", "_test*", "_tkinter*",
    )  # fmt: skip
    shutil.copytree(stdlib, home, ignore=leave, symlinks=True)
    site = home / "site-packages"
    site.mkdir()
    for source in sorted(Path(sysconfig.get_path("platlib")).iterdir()):
        if DEV_TOOLS.match(source.name):
            continue
        if source.is_dir():
            shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
        else:
            shutil.copy2(source, site / source.name)
    program = Path(os.path.realpath(sys.executable))
    shutil.copy2(program, tree / "usr/bin" / _python())
    (tree / "usr/bin/python3").symlink_to(_python())
    _compile(home, home, tree)
    for library in sorted(_libraries([program, *home.rglob("*.so")])):
        places = [tree / "usr/lib" / sub / library.name for sub in ("", "x86_64-linux-gnu")]
        if tree not in library.parents and not any(place.exists() for place in places):
            shutil.copy2(library, places[0])


def _libraries(programs: list[Path]) -> set[Path]:
    done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False)
    return {Path(path) for path in LIBRARY.findall(done.stdout)}


def _compile(folder: Path, strip: Path, tree: Path) -> None:
    """Bytecode that is never checked against its source: the image does not change."""
    compileall.compile_dir(
        str(folder), quiet=2, workers=2, stripdir=str(tree), force=True,
        invalidation_mode=__import__("py_compile").PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
