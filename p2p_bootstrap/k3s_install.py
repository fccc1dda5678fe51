"""How does a release of k3s come onto this machine, whole and genuine?

Every file is written beside its place, its SHA-256 compared while it is written, and renamed into place only
when all files are proved; the program must then say its version. The one that was there before is kept as
``k3s.previous``. Sources are a folder on disk or an http(s) address; proxies are those of the environment.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from p2p_bootstrap.cloudconfig import ed25519
from p2p_bootstrap.cloudconfig.fetching import SafeRedirects
from p2p_bootstrap.cloudconfig.remote import Source as Address
from p2p_network.core.errors import NotPermitted, P2PError
from p2p_roles.k3s.release import MAX_FILE_BYTES, MAX_LIST_BYTES, Release, expected_sha256, said_version

PROGRAM: Final = Path("/usr/local/bin/k3s")
IMAGES: Final = Path("/var/lib/rancher/k3s/agent/images")
TIMEOUT_S: Final = 30.0
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a release's files come from.

    Attributes:
        folder: http(s) address or path of the folder that they lie in.
        program: the program's name there, "" for upstream's.
        ca_file: certificate authorities to trust instead of the system's.
        public_key: Ed25519 key (base64) that must have signed the list of checksums; "" for none.
        sha256: of the program, instead of a list of checksums; "" for none.
    """

    folder: str
    program: str = ""
    ca_file: Path | None = None
    public_key: str = ""
    sha256: str = ""

    @property
    def is_url(self) -> bool:
        """Whether it is an http(s) address; else a path."""
        return self.folder.startswith(("https://", "http://"))

    def place(self, name: str) -> str:
        """The address or path of one file."""
        return f"{self.folder.rstrip('/')}/{name}"


def origin_of(
    wanted: Release, source: str | None, mirror: str, ca_file: Path | None, public_key: str, sha256: str
) -> Origin:
    """Where to get a release.

    Args:
        source: the program itself, or a folder (its address or path ending in /) with the release's files;
            None for upstream's, or for those of `mirror`.
    """
    folder, program = wanted.folder(mirror), ""
    if source is not None and (source.endswith("/") or Path(source).is_dir()):
        folder = source
    elif source is not None:
        folder, _, program = source.rpartition("/")
        folder = folder or ("/" if source.startswith("/") else ".")
    return Origin(folder, program, ca_file, public_key, sha256)


def install(
    release: Release,
    origin: Origin,
    *,
    airgap: bool = False,
    program: Path = PROGRAM,
    images: Path = IMAGES,
    ask_version: Callable[[Path], str],
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Bring the release here; False if it was here already.

    Args:
        ask_version: what ``PROGRAM --version`` prints.
        say: told what is being done, one line each.

    Raises:
        P2PError (RoleError for what a release must be, NotPermitted): nothing was changed.
    """
    if origin.folder.startswith("http://") and not (origin.public_key or origin.sha256):
        raise P2PError(
            f"{Address(origin.folder).public()}: plain http could be changed on the way by anyone",
            hint="use https, or add --public-key (and sign the list of checksums) or --sha256",
        )
    name = origin.program or release.program
    wanted = _wanted(release, origin, name, airgap=airgap)
    targets = {release.images: images / release.images} if airgap else {}
    targets[name] = program  # last: who finds the new program finds its images
    missing = [n for n, target in targets.items() if sha256_of(target) != wanted[n]]
    fresh: list[tuple[Path, Path]] = []
    try:
        for file in missing:
            say(f"getting {Address(origin.place(file)).public()}")
            target = targets[file]
            fresh.append((_bring(origin, file, target, wanted[file]), target))
        for temporary, target in fresh:
            if target == program:
                _prove(temporary, release, ask_version)
        for temporary, target in fresh:
            put_in_place(temporary, target, keep_previous=target == program)
    except PermissionError as exc:
        raise NotPermitted(
            f"{exc.filename} cannot be written: permission denied", hint="run it as root"
        ) from exc
    except OSError as exc:
        raise P2PError(
            f"{exc.filename} cannot be written: {exc.strerror}", hint="choose another place with --to"
        ) from exc
    finally:
        for temporary, _ in fresh:
            temporary.unlink(missing_ok=True)
    return bool(fresh)


def _wanted(release: Release, origin: Origin, name: str, *, airgap: bool) -> dict[str, str]:
    """The checksum of every file that is wanted."""
    if origin.sha256 and not airgap:
        return {name: origin.sha256.lower()}
    place = origin.place(release.checksums)
    text = _read(origin, release.checksums)
    if origin.public_key:
        _check_signature(origin, text, _read(origin, f"{release.checksums}.sig"), place)
    where = Address(place).public()
    listed = text.decode("ascii", errors="replace")
    names = [name, *([release.images] if airgap else [])]
    # a program of another name than upstream's is listed under its own or under upstream's
    found = {n: expected_sha256(listed, release.program if n == name else n, where) for n in names}
    if origin.sha256:
        found[name] = origin.sha256.lower()
    return found


def _check_signature(origin: Origin, text: bytes, raw: bytes, place: str) -> None:
    public = Address(place).public()
    try:
        key = base64.b64decode(origin.public_key, validate=True)
        signature = (
            raw if len(raw) == ed25519.SIGNATURE_BYTES else base64.b64decode(raw.strip(), validate=True)
        )
    except (binascii.Error, ValueError) as exc:
        raise P2PError(
            f"key or signature of {public} is not base64", hint="an Ed25519 key has 32 bytes"
        ) from exc
    if not ed25519.verify(key, signature, text):
        raise P2PError(
            f"{public} is not signed by the key given", hint="do not install it; ask who runs the mirror"
        )


def _bring(origin: Origin, name: str, target: Path, sha256: str) -> Path:
    """Write one file beside its place. Raises P2PError if it is not the one that was meant."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    digest, size = hashlib.sha256(), 0
    public = Address(origin.place(name)).public()
    try:
        with _open(origin, name) as source, open(temporary, "wb") as out:
            while block := _block(source, public):
                size += len(block)
                if size > MAX_FILE_BYTES:
                    raise P2PError(f"{public} is larger than {MAX_FILE_BYTES >> 30} GiB", hint="is it k3s?")
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != sha256:
            raise P2PError(
                f"{public} is not what its checksum says: {digest.hexdigest()} instead of {sha256}",
                hint="try again; if it happens again the mirror is damaged or false",
            )
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _prove(temporary: Path, release: Release, ask_version: Callable[[Path], str]) -> None:
    temporary.chmod(0o755)
    said = said_version(ask_version(temporary))
    if said != release.version:
        raise P2PError(
            f"the program says that it is {said or 'no k3s'}, not {release.version}",
            hint="check --version and --from",
        )


def put_in_place(temporary: Path, target: Path, *, keep_previous: bool) -> None:
    """Rename into place, durably; there is a program at every moment."""
    if keep_previous and target.exists():
        previous = target.with_name(f"{target.name}.previous")
        spare = target.with_name(f".{target.name}.old")
        with suppress(FileNotFoundError):
            spare.unlink()
        os.link(target, spare)
        os.replace(spare, previous)
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    """Of a file's content; "" if there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(origin: Origin, name: str) -> bytes:
    """A small file, whole."""
    public = Address(origin.place(name)).public()
    with _open(origin, name) as source:
        data = source.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise P2PError(f"{public} is too large for a list of checksums", hint="check the address")
    return data


def _block(source: IO[bytes], public: str) -> bytes:
    try:
        return source.read(_BLOCK)
    except OSError as exc:
        raise P2PError(f"{public} broke off: {exc}", hint="try again") from exc


def _open(origin: Origin, name: str) -> IO[bytes]:
    """Raises P2PError that says why it can't be had."""
    place = origin.place(name)
    if not origin.is_url:
        try:
            return open(place, "rb")
        except OSError as exc:
            raise P2PError(f"{place} can't be read: {exc.strerror}", hint="check --from") from exc
    public = Address(place).public()
    try:
        context = ssl.create_default_context(cafile=str(origin.ca_file) if origin.ca_file else None)
        opener = urllib.request.build_opener(SafeRedirects(), urllib.request.HTTPSHandler(context=context))
        answer: IO[bytes] = opener.open(place, timeout=TIMEOUT_S)
        return answer
    except urllib.error.HTTPError as exc:
        raise P2PError(f"{public} answers {exc.code} {exc.reason}", hint="check version and mirror") from exc
    except urllib.error.URLError as exc:
        if isinstance(exc.reason, ssl.SSLCertVerificationError):
            why = f"its certificate is not trusted: {exc.reason.verify_message}"
            raise P2PError(f"{public}: {why}", hint="name the mirror's authority with --ca-file") from exc
        raise P2PError(
            f"{public} can't be reached: {exc.reason}", hint="check the network, HTTPS_PROXY and the name"
        ) from exc
    except (OSError, ValueError) as exc:
        raise P2PError(f"{public} can't be reached: {exc}", hint="check the network and the name") from exc
