"""How are encrypted and grouped volumes opened before they are mounted? cryptsetup, lvm, and who has the key.

A key comes from the initramfs: first its hooks (``unlock.d``: a program each, for a key service, a smart
card, ...; it gets the device in its environment and prints the key), then its key files (``keys/UUID.key``,
``keys/default.key``); then from the TPM, if one was sealed for this very boot (`tpm`): ``UUID.tpm`` on the
EFI system partition, for what is in the initramfs is part of what it is sealed to. A wrong key is no error
yet, the next source is asked. What stays locked is told, and the plan decides whether the boot can do without
it; it never goes on with an empty volume instead. Volumes may lie in each other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import files, tpm
from p2p_bootstrap.boot.facts import BlockDevice
from p2p_network.core.errors import BootError

FOLDER: Final = Path("/usr/lib/kairos-p2p")
HOOKS: Final = "unlock.d"
KEYS: Final = "keys"
SEALED: Final = "EFI/kairos-p2p/keys"
MAX_KEY_BYTES: Final = 8 * 1024 * 1024  # cryptsetup's own limit
MAX_ROUNDS: Final = 4  # volumes in volumes
HOOK_TIMEOUT_S: Final = 60.0
PROGRAM_TIMEOUT_S: Final = 120.0
# no udev runs here: the device mapper makes its nodes itself, and waits for nobody
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DM_DISABLE_UDEV": "1"}
Run = Callable[[Sequence[str], bytes], tuple[int, str]]  # argv, stdin -> exit code, last words
Devices = Callable[[], Sequence[BlockDevice]]


def unlock(
    record: Path,
    esp: Path,
    *,
    secrets: bool,
    folder: Path = FOLDER,
    devices: Devices | None = None,
    run: Run | None = None,
) -> tuple[str, ...]:
    """Open everything that can be opened. Returns remarks; writes what became of each device to `record`."""
    look, start = devices or _devices, run or _run
    outcome: dict[str, str] = {}
    for _ in range(MAX_ROUNDS):
        fresh = [d for d in look() if not d.held and d.path not in outcome]
        groups = [d for d in fresh if d.fstype == "LVM2_member"]
        volumes = [d for d in fresh if d.fstype == "crypto_LUKS" and secrets]
        if not groups and not volumes:
            break
        if groups:
            why = _activate(start)
            outcome |= dict.fromkeys((d.path for d in groups), why)
        for device in volumes:
            outcome[device.path] = _open(device, folder, esp, start)
    record.parent.mkdir(parents=True, exist_ok=True)
    files.replace(record, json.dumps(outcome).encode())
    return tuple(f"{path} stays locked: {why}" for path, why in outcome.items() if why)


def name_of(device: BlockDevice) -> str:
    """The name of the open volume: Kairos's, the partition's; else one by its UUID."""
    plain = device.partlabel or device.label
    safe = plain and all(c.isalnum() or c in "-_." for c in plain)
    return plain if safe else f"luks-{device.uuid}"


def _activate(run: Run) -> str:
    """Activate every group of volumes. Returns why not, "" if it is done."""
    code, words = run(("lvm", "vgchange", "-ay", "--sysinit", "--noudevsync"), b"")
    if code == 0:
        run(("lvm", "vgmknodes"), b"")
    return "" if code == 0 else f"lvm: {words}"


def _open(device: BlockDevice, folder: Path, esp: Path, run: Run) -> str:
    """Open one volume with the first key that fits. Returns why not, "" if it is open."""
    tried: list[str] = []
    for source, key in _keys(device, folder, esp, tried):
        argv = ("cryptsetup", "open", "--type", "luks", "--key-file", "-", device.path, name_of(device))
        code, words = run(argv, key)
        if code == 0:
            return ""
        tried.append(f"{source}: {words or f'cryptsetup ended with {code}'}")
    return "; ".join(tried) or "the initramfs has no key for it, and no hook that gets one"


def _keys(device: BlockDevice, folder: Path, esp: Path, tried: list[str]) -> Iterator[tuple[str, bytes]]:
    """(source, key), each got when it is asked for; a source that fails adds to `tried`."""
    hooks = folder / HOOKS
    for program in sorted(hooks.iterdir()) if hooks.is_dir() else ():
        if program.is_file() and os.access(program, os.X_OK):
            try:
                yield program.name, _ask(program, device)
            except BootError as exc:
                tried.append(f"{program.name}: {exc.message}")
    for name in (f"{device.uuid}.key", "default.key"):
        key = files.read(folder / KEYS / name, MAX_KEY_BYTES)
        if key is not None:
            yield name, key
    sealed = files.read_text(esp / SEALED / f"{device.uuid}.tpm", tpm.MAX_SEALED_BYTES)
    if sealed:
        try:
            yield "TPM", tpm.unseal(sealed)
        except (BootError, OSError) as exc:
            tried.append(f"TPM: {exc}")


def _ask(program: Path, device: BlockDevice) -> bytes:
    """What a hook prints, without the end of its line."""
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEVICE": device.path, "LUKS_UUID": device.uuid,
        "LABEL": device.label, "PARTLABEL": device.partlabel,
    }  # fmt: skip
    try:
        done = subprocess.run(
            [program],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=HOOK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BootError(
            f"it can't be run: {exc}", hint="is it a program for this machine, and quick?"
        ) from exc
    key = done.stdout.removesuffix(b"\n")
    if done.returncode != 0 or not key:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BootError(f"it gave no key (exit code {done.returncode}) {words[-1] if words else ''}".rstrip())
    return key[:MAX_KEY_BYTES]


def _devices() -> Sequence[BlockDevice]:
    from p2p_bootstrap.boot.observe import Observer  # late: it reads our record

    return Observer().devices()


def _run(argv: Sequence[str], stdin: bytes) -> tuple[int, str]:
    path = shutil.which(argv[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        return 127, f"the initramfs has no {argv[0]}: boot build initramfs --program {argv[0]}"
    try:
        done = subprocess.run(
            [path, *argv[1:]],
            env=_ENVIRONMENT,
            input=stdin,
            capture_output=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} takes too long"
    words = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return done.returncode, words[-1] if words else ""
