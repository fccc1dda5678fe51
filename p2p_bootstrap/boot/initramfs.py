"""What is in our initramfs, and how is it made? Python, this module, the kernel's modules; nothing else.

The interpreter that builds is the one that is packed: its executable, the shared libraries it needs, and of
its standard library only what the boot imports (asked of a child process that imports it), as bytecode.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import marshal
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import coldplug, cpio, modules
from p2p_network.core.errors import BootError

STDLIB: Final = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
INIT: Final = """#!/usr/bin/python3 -IS
import sys

from p2p_bootstrap.boot.__main__ import main

sys.exit(main([]))
"""
# imported late, by name, or only when something goes wrong
_ALSO: Final = (
    "encodings.ascii", "encodings.latin_1", "encodings.utf_16_le", "encodings.utf_8",
    "concurrent.futures.thread", "traceback", "p2p_bootstrap.boot.__main__", "p2p_bootstrap.boot.stagerun",
    "p2p_bootstrap.cloudconfig.template", "p2p_bootstrap.stages.steps.disk",
    "p2p_bootstrap.stages.steps.entities", "p2p_bootstrap.stages.steps.images",
    "p2p_bootstrap.stages.steps.userdata", "difflib", "shutil", "subprocess", "yaml",
)  # fmt: skip
_LISTING: Final = """
import importlib, json, sys
sys.modules["yaml._yaml"] = None  # the C parser: not used, see cloudconfig.document
sys.modules["_ssl"] = None  # the same: stages before the switch have no network
sys.modules["_uuid"] = None
sys.modules["_hashlib"] = None  # OpenSSL's 5 MB; Python has its own SHA-2
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps([[name, getattr(m, "__file__", None)] for name, m in sys.modules.items() if m]))
"""
_LDD: Final = re.compile(r"(?:=>\s+)?(/\S+)\s+\(0x")


def build(
    module_folder: Path | None,
    names: Sequence[str] = modules.DEFAULT,
    programs: Sequence[Path] = (),
    files: Mapping[str, cpio.Entry] | None = None,
    *,
    hardware: bool = False,
) -> bytes:
    """The archive, not compressed.

    Args:
        module_folder: ``/lib/modules/VERSION``, None for a kernel without.
        names: modules that are loaded at each boot.
        hardware: with drivers of disks of all kinds, not only of the usual ones.
        programs: packed under their own paths, with the libraries they need.
        files: what else is to be in it.
    """
    tree: dict[str, cpio.Entry] = {
        "init": cpio.file(INIT.encode(), 0o755),
        # Python reads randomness before we could mount /dev; without it the kernel panics
        "dev/console": cpio.character_device(5, 1),
        "dev/null": cpio.character_device(1, 3, 0o666),
        "dev/urandom": cpio.character_device(1, 9, 0o666),
        "etc/initrd-release": cpio.file(b'ID=kairos-p2p\nNAME="kairos-p2p initramfs"\n'),
        **{name: cpio.folder() for name in ("proc", "sys", "run", "sysroot", "tmp")},
    }
    _add_python(tree)
    for program in programs:
        tree[str(program).lstrip("/")] = cpio.file(_stripped(program), 0o755)
    for path in sorted(_libraries(programs) if programs else ()):
        tree.setdefault(str(path).lstrip("/"), cpio.file(_stripped(path), 0o755))
        thread_end = path.with_name("libgcc_s.so.1")  # the C library opens it by name when a thread ends
        if thread_end.exists():
            tree.setdefault(str(thread_end).lstrip("/"), cpio.file(_stripped(thread_end), 0o755))
    tree |= files or {}
    if module_folder is not None:
        _add_modules(tree, module_folder, names, hardware=hardware)
    return cpio.archive(tree)


def _add_modules(tree: dict[str, cpio.Entry], folder: Path, names: Sequence[str], *, hardware: bool) -> None:
    """The modules' files, and what says which is loaded when."""
    kernel = modules.Kernel.read(folder)
    always = kernel.wanted(names)
    known = coldplug.catalogue(folder, () if hardware else modules.CONTROLLERS)
    on_demand = {kind: kernel.wanted(needs) for kind, needs in modules.FILE_SYSTEMS.items()}
    order = "".join(f"{modules.file_name(path)}\n" for path in always)
    tree[f"{modules.FOLDER}/{modules.ORDER}"] = cpio.file(order.encode())
    tree[f"{modules.FOLDER}/{coldplug.NAME}"] = cpio.file(coldplug.render(known))
    plain = {kind: [modules.file_name(path) for path in paths] for kind, paths in on_demand.items()}
    tree[f"{modules.FOLDER}/{modules.DEMAND}"] = cpio.file(json.dumps(plain).encode())
    later = [path for paths in on_demand.values() for path in paths]
    for path in (*always, *later, *kernel.wanted(known.files or ())):
        name = f"{modules.FOLDER}/{modules.file_name(path)}"
        if name not in tree:
            tree[name] = cpio.file(modules.unpacked(path))


def compress(data: bytes) -> tuple[bytes, str]:
    """Compressed as a kernel reads it, and the name of the method: zstd, or gzip where that is missing."""
    program = shutil.which("zstd")
    if program is None:
        return gzip.compress(data, 9, mtime=0), "gzip"
    done = subprocess.run([program, "-q", "-c", "-10"], input=data, capture_output=True, check=True)
    return done.stdout, "zstd"


def _add_python(tree: dict[str, cpio.Entry]) -> None:
    executable = Path(os.path.realpath(sys.executable))
    needed = [executable]
    tree["usr/bin/python3"] = cpio.file(_stripped(executable), 0o755)
    for name, path in _imported():
        target = f"{STDLIB}/" + name.replace(".", "/")
        if path.suffix == ".py":
            target += "/__init__.pyc" if path.name == "__init__.py" else ".pyc"
            tree[target] = cpio.file(_bytecode(path, name))
        elif path.suffix == ".so":
            tree[f"{STDLIB}/lib-dynload/{path.name}"] = cpio.file(_stripped(path), 0o755)
            needed.append(path)
    tree.setdefault(f"{STDLIB}/lib-dynload", cpio.folder())
    for path in sorted(_libraries(needed)):
        tree[str(path).lstrip("/")] = cpio.file(_stripped(path), 0o755)


def _imported() -> list[tuple[str, Path]]:
    """Names and files of all modules that the boot imports, as a fresh interpreter sees them."""
    script = _LISTING.format(names=_ALSO)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(
            f"the boot module can't be imported: {done.stderr[-300:]}", hint="is it installed whole?"
        )
    found = [(name, Path(file)) for name, file in json.loads(done.stdout) if file and name != "__main__"]
    return [
        (name, path)
        for name, path in found
        if path.suffix in (".py", ".so") and not name.startswith(("site", "__editable__"))
    ]


def _bytecode(path: Path, name: str) -> bytes:
    """A .pyc that is never checked against a source (PEP 552)."""
    code = compile(path.read_bytes(), f"{name}.py", "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def _stripped(path: Path) -> bytes:
    """A program without its debug information (most of a self-built Python); as it is without `strip`."""
    program = shutil.which("strip")
    if program is None:
        return path.read_bytes()
    with tempfile.NamedTemporaryFile() as out:
        done = subprocess.run(
            [program, "--strip-unneeded", "-o", out.name, str(path)], capture_output=True, check=False
        )
        return Path(out.name).read_bytes() if done.returncode == 0 else path.read_bytes()


def _libraries(programs: Sequence[Path]) -> set[Path]:
    """Shared libraries and the loader, under the paths where the loader looks for them."""
    found: set[Path] = set()
    for program in programs:
        done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        found |= {Path(path) for path in _LDD.findall(done.stdout)}
    return found
