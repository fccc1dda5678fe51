"""``kairos-p2p boot build uki`` and ``boot measure``: a whole system as one EFI program, and its PCR 11."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.options import PATH, output_option
from p2p_network.core.errors import BootError, UsageError

if TYPE_CHECKING:
    from p2p_bootstrap.boot.cpio import Entry

STUBS: Final = (
    "/usr/lib/systemd/boot/efi/linuxx64.efi.stub",
    "/usr/lib/systemd/boot/efi/linuxaa64.efi.stub",
)
OS_RELEASE: Final = (
    'ID=kairos-p2p\nNAME="kairos-p2p"\nPRETTY_NAME="kairos-p2p ({uname})"\nVERSION_ID="{uname}"\n'
)
BANKS: Final = ("sha1", "sha256", "sha384", "sha512")


@click.command()
@click.option("--file", "target", type=PATH, required=True, help="The file to write.")
@click.option("--kernel", type=PATH, required=True, help="The kernel: /boot/vmlinuz-VERSION.")
@click.option(
    "--initrd", "initrds", type=PATH, multiple=True, required=True,
    help="An initramfs (boot build initramfs); several are joined in order.",
)  # fmt: skip
@click.option("--root", type=PATH, help="The root image (squashfs, erofs, ext4). It goes inside.")
@click.option("--beside", is_flag=True, help="Put the root image beside it, on the EFI system partition.")
@click.option("--cmdline", default="", help="The kernel command line; rd.immucore.uki is added.")
@click.option(
    "--os-release", type=PATH, help="The image's os-release; without: one with the kernel's version."
)
@click.option("--uname", default="", help="The kernel's version; read from the kernel where it tells it.")
@click.option("--sbat", type=PATH, help="Revocation data (SBAT, CSV) instead of the stub's own.")
@click.option(
    "--section", "extra", multiple=True, metavar="NAME=FILE", help="One more section: .splash=logo.bmp."
)
@click.option("--stub", type=PATH, help="systemd's stub; without: the one of the package systemd-boot-efi.")
@click.option("--sign-key", type=PATH, help="Sign for Secure Boot with this key (PEM).")
@click.option("--sign-cert", type=PATH, help="... and this certificate (PEM).")
@click.option(
    "--pcr-key", type=PATH, help="Sign the policy of PCR 11 with this key (PEM): .pcrpkey, .pcrsig."
)
@click.option("--phase", "phases", multiple=True, help="A phase that extends PCR 11 after the stub.")
@output_option
def uki(
    target: Path, kernel: Path, initrds: tuple[Path, ...], root: Path | None, beside: bool, cmdline: str,
    os_release: Path | None, uname: str, sbat: Path | None, extra: tuple[str, ...], stub: Path | None,
    sign_key: Path | None, sign_cert: Path | None, pcr_key: Path | None, phases: tuple[str, ...],
    output: out.Output,
) -> None:  # fmt: skip
    """Make a unified kernel image: stub, kernel, command line, initrd and root as one EFI program.

    The same files give the same bytes (a signature holds its time). Prints the value that PCR 11 will have.
    """
    from p2p_bootstrap.boot import measure, signing
    from p2p_bootstrap.boot import uki as maker
    from p2p_bootstrap.boot.files import replace

    if (sign_key is None) != (sign_cert is None):
        raise UsageError("a signature needs both", hint="give --sign-key and --sign-cert")
    if beside and root is None:
        raise UsageError("--beside is for a root image", hint="name it: --root IMAGE --beside")
    archives = [_need(path) for path in initrds]
    if root is not None:
        archives.append(_root(root, target.parent if beside else None))
    linux = _need(kernel)
    version = uname or maker.kernel_version(linux) or "unknown"
    parts = maker.Parts(
        stub=_need(stub or _stub()), kernel=linux, cmdline=maker.with_switch(cmdline),
        os_release=_need(os_release) if os_release else OS_RELEASE.format(uname=version).encode(),
        initrds=tuple(archives), uname=version, sbat=_need(sbat) if sbat else b"",
        public_key=signing.public_key(pcr_key) if pcr_key else b"", extra=tuple(map(_section, extra)),
    )  # fmt: skip
    made = maker.assemble(parts)
    if pcr_key:
        made = maker.assemble(parts, signing.sign_policies(made, pcr_key, ("sha256",), phases))
    value = measure.predict(made, phases=phases)
    if sign_key and sign_cert:
        made = signing.sign_image(made, sign_key, sign_cert)
    replace(target, made, 0o644)
    _say(target, len(made), value, "signed" if sign_key else "not signed", output)


@click.command()
@click.option("--folder", type=PATH, required=True, help="The root of the EFI system partition.")
@click.option("--title", default="kairos-p2p", show_default=True, help="What stands in the boot menu.")
@click.option(
    "--tries", type=click.IntRange(0, 9999), default=3, show_default=True,
    help="How often active and passive may fail before the next entry is taken; 0: not counted.",
)  # fmt: skip
def loader(folder: Path, title: str, tries: int) -> None:
    """Write systemd-boot's configuration: an entry for each slot, whose tries the loader counts.

    The programs are /EFI/kairos/active.efi, passive.efi, recovery.efi and statereset.efi.
    """
    from p2p_bootstrap.boot.entries import loader_files
    from p2p_bootstrap.boot.files import replace

    for file in loader_files(title, tries):
        target = folder / file.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, file.text.encode(), 0o644)
        out.emit(str(target))


@click.command("grub-cfg")
@click.option("--file", "target", type=PATH, required=True, help="The file to write.")
@click.option("--title", default="kairos-p2p", show_default=True, help="What stands in the boot menu.")
@click.option(
    "--timeout", "timeout_s", type=click.IntRange(0, 600), default=5, show_default=True, metavar="SECONDS"
)
@click.option("--kernel", default="/boot/vmlinuz", show_default=True, help="The kernel, inside each image.")
@click.option("--initrd", default="/boot/initrd", show_default=True, help="The initramfs, inside each image.")
@click.option("--cmdline", default="", help="More for the kernel command line of every entry.")
def grub_cfg(target: Path, title: str, timeout_s: int, kernel: str, initrd: str, cmdline: str) -> None:
    """Write a grub.cfg for the slots: it reads the slot pointer and counts the tries of one on trial.

    Menu names, next_entry and extra_cmdline (grubenv on the OEM partition) are those of Kairos.
    """
    from p2p_bootstrap.boot import grubcfg
    from p2p_bootstrap.boot.files import replace

    replace(target, grubcfg.render(grubcfg.Menu(title, timeout_s, kernel, initrd, cmdline)).encode(), 0o644)
    out.emit(str(target))


@click.command("measure")
@click.argument("image", type=PATH)
@click.option("--bank", type=click.Choice(BANKS), default="sha256", show_default=True)
@click.option("--phase", "phases", multiple=True, help="A phase that extends PCR 11 after the stub.")
@output_option
def measure_verb(image: Path, bank: str, phases: tuple[str, ...], output: out.Output) -> None:
    """Print the value that PCR 11 will have when this unified kernel image runs."""
    from p2p_bootstrap.boot import measure

    data = _need(image)
    value = measure.predict(data, bank, phases)
    if output in ("json", "yaml"):
        rows = [name for name, _ in measure.measured(data)]
        document = {
            "pcr": measure.PCR,
            "bank": bank,
            "value": value,
            "sections": rows,
            "phases": list(phases),
        }
        out.print_document(document, output)
        return
    out.emit(value)


@click.command()
@click.argument("image", type=PATH)
@click.option("--secret-file", type=PATH, required=True, help="Up to 128 bytes; - reads standard input.")
@click.option("--file", "target", type=PATH, required=True, help="The file to write: UUID.tpm.")
@click.option("--phase", "phases", multiple=True, help="A phase that extends PCR 11 after the stub.")
def seal(image: Path, secret_file: Path, target: Path, phases: tuple[str, ...]) -> None:
    """Seal a secret with this machine's TPM: it opens only while this unified kernel image runs.

    It belongs on the EFI system partition, as /EFI/kairos-p2p/keys/UUID.tpm (the LUKS UUID of the volume):
    what is in the image is part of what the secret is sealed to.
    """
    import sys

    from p2p_bootstrap.boot import measure, tpm
    from p2p_bootstrap.boot.files import replace

    secret = (
        sys.stdin.buffer.read(tpm.MAX_SECRET_BYTES + 1) if str(secret_file) == "-" else _need(secret_file)
    )
    value = measure.predict(_need(image), phases=phases)
    replace(target, tpm.seal(secret, value).encode(), 0o600)
    out.emit(f"{target}: opens while PCR 11 is {value}")


def located(name: str) -> Path:
    """A program by its name or path. Raises BootError."""
    import shutil

    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise BootError(f"{name} is not on this machine", hint="install its package, or name its path")
    return Path(path)


def unlock_files(hooks: tuple[Path, ...], keys: tuple[str, ...]) -> dict[str, Entry]:
    """What `unlocking` looks for in an initramfs."""
    from p2p_bootstrap.boot import cpio
    from p2p_bootstrap.boot.unlocking import FOLDER, HOOKS, KEYS

    place = str(FOLDER).lstrip("/")
    found = {f"{place}/{HOOKS}/{hook.name}": cpio.file(_need(hook), 0o755) for hook in hooks}
    for text in keys:
        uuid, equals, path = text.partition("=")
        if not equals or not uuid or not all(c.isalnum() or c == "-" for c in uuid):
            raise UsageError(f"{text!r} names no key", hint="write it like UUID=FILE or default=FILE")
        found[f"{place}/{KEYS}/{uuid.lower()}.key"] = cpio.file(_need(Path(path)), 0o600)
    return found


def _say(target: Path, size_bytes: int, value: str, signed: str, output: out.Output) -> None:
    if output in ("json", "yaml"):
        document = {"file": str(target), "size_bytes": size_bytes, "signature": signed, "pcr11": value}
        out.print_document(document, output)
        return
    out.emit(f"{target}: {out.bytes_text(size_bytes)}, {signed}")
    out.emit(f"PCR 11 (sha256): {value}")


def _root(path: Path, folder: Path | None) -> bytes:
    """The initrd about the root image; with a `folder` the image is written there, to lie beside."""
    from p2p_bootstrap.boot import superblock
    from p2p_bootstrap.boot import uki as maker
    from p2p_bootstrap.boot.files import replace
    from p2p_bootstrap.boot.plan import IMAGE_TYPES

    image = _need(path)
    found = superblock.probe(lambda offset, size: image[offset : offset + size])
    if found is None or found.fstype not in IMAGE_TYPES:
        raise BootError(
            f"{path} is no image of a root", hint="make one: mksquashfs TREE IMAGE, or mkfs.erofs"
        )
    note = maker.root_note(image, found.fstype, beside=folder is not None)
    if folder is not None:
        name = note.path.rpartition("/")[2]
        replace(folder / name, image, 0o644)
        out.note(f"{folder / name} belongs on the EFI system partition as {note.path}")
    return maker.root_initrd(note, image)


def _section(text: str) -> tuple[str, bytes]:
    name, equals, path = text.partition("=")
    if not equals or not name.startswith("."):
        raise UsageError(f"{text!r} is no section", hint="write it like .splash=logo.bmp")
    return name, _need(Path(path))


def _stub() -> Path:
    for path in map(Path, STUBS):
        if path.exists():
            return path
    raise BootError(
        "systemd's stub is not on this machine", hint="apt-get install systemd-boot-efi, or --stub FILE"
    )


def _need(path: Path) -> bytes:
    from p2p_bootstrap.boot import pe
    from p2p_bootstrap.boot.files import read

    data = read(path, pe.MAX_BYTES)
    if data is None:
        raise BootError(f"{path}: no such file", hint="check the path")
    return data
