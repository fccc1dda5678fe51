"""How does a TPM keep a secret for one boot and no other? The few commands for that, spoken directly.

`seal` binds a secret to the value that PCR 11 will have (`measure.predict`), under the TPM's own storage
key; `unseal` gives it back while PCR 11 has that value. `seal_here` binds a secret to this TPM alone, for
what must outlive an upgrade of the image: a node's identity. No library, no daemon: an initramfs has
neither. Between the TPM and us nothing is encrypted: against who listens on its bus take a passphrase, or a
key service.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from p2p_bootstrap.boot import measure
from p2p_network.core.errors import BootError

Channel = Callable[[bytes], bytes]  # a command -> its response

MAX_SEALED_BYTES: Final = 16 * 1024
MAX_SECRET_BYTES: Final = 128  # of a sealed object
MAX_RESPONSE_BYTES: Final = 4096
DEVICES: Final = ("/dev/tpmrm0", "/dev/tpm0")
_OWNER: Final = 0x40000001
_NULL: Final = 0x40000007
_PASSWORD: Final = 0x40000009
_PLAIN, _SESSIONS = 0x8001, 0x8002
_CREATE_PRIMARY, _CREATE, _LOAD, _UNSEAL = 0x131, 0x153, 0x157, 0x15E
_FLUSH, _START_SESSION, _POLICY_PCR = 0x165, 0x176, 0x17F
# the storage key of the TCG's profile: ECC P-256, AES-128-CFB, restricted, no dictionary locks
_STORAGE_KEY: Final = struct.pack(">HHIHHHHHHHHH", 0x23, 0x0B, 0x30472, 0, 6, 128, 0x43, 0x10, 3, 0x10, 0, 0)
_SEALED_FLAGS: Final = 0x492  # this TPM, this parent, by policy only, without dictionary locks
_HERE_FLAGS: Final = 0x452  # the same, with an empty password instead of a policy
_HERE: Final = "here"


def seal(secret: bytes, value: str, channel: Channel | None = None, *, bank: str = "sha256") -> str:
    """The secret as a text that only this TPM opens, and only while PCR 11 has `value` (hexadecimal)."""
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise BootError(f"a TPM seals 1 to {MAX_SECRET_BYTES} bytes", hint="seal a key, not the data")
    return _seal(secret, _SEALED_FLAGS, measure.policy(value, bank), bank, channel)


def seal_here(secret: bytes, channel: Channel | None = None) -> str:
    """The secret (up to `MAX_SECRET_BYTES`) as a text that this TPM opens, whatever was booted."""
    return _seal(secret, _HERE_FLAGS, b"", _HERE, channel)


def has_tpm() -> bool:
    """Whether this machine has one that can be used."""
    return any(os.access(path, os.R_OK | os.W_OK) for path in DEVICES)


def _seal(secret: bytes, flags: int, policy: bytes, bank: str, channel: Channel | None) -> str:
    with _Tpm(channel) as tpm:
        public = struct.pack(">HHI", 0x08, 0x0B, flags) + _sized(policy) + struct.pack(">HH", 0x10, 0)
        sensitive = _sized(_sized(b"") + _sized(secret))
        made = tpm.command(_CREATE, [tpm.storage_key()], sensitive + _sized(public) + _sized(b"") + bytes(4))
        private, rest = _take(made)
        public, _ = _take(rest)
    document = {"bank": bank, "private": _text(private), "public": _text(public)}
    return json.dumps(document, sort_keys=True) + "\n"


def unseal(text: str, channel: Channel | None = None) -> bytes:
    """The secret. Raises BootError if this is another TPM, or PCR 11 has another value."""
    try:
        raw: Any = json.loads(text[:MAX_SEALED_BYTES])
        private, public = (base64.b64decode(raw[name], validate=True) for name in ("private", "public"))
        bank = raw["bank"] if raw["bank"] == _HERE else measure.BANKS[measure.BANKS.index(raw["bank"])]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BootError("the sealed secret is damaged", hint="seal it anew: boot seal") from exc
    with _Tpm(channel) as tpm:
        loaded = tpm.command(_LOAD, [tpm.storage_key()], _sized(private) + _sized(public), handles=1)
        (item,) = struct.unpack_from(">I", loaded)
        tpm.opened.append(item)
        session = _PASSWORD if bank == _HERE else tpm.policy_session(bank)
        secret, _ = _take(tpm.command(_UNSEAL, [item], b"", session=session))
        return secret


class _Tpm:
    """One conversation; what it loaded is flushed at its end."""

    def __init__(self, channel: Channel | None) -> None:
        self._fd = -1
        self._channel = channel or self._device
        self.opened: list[int] = []

    def __enter__(self) -> _Tpm:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in reversed(self.opened):
            with suppress(BootError, OSError):
                self.command(_FLUSH, [], struct.pack(">I", handle), tag=_PLAIN)
        if self._fd >= 0:
            os.close(self._fd)

    def storage_key(self) -> int:
        """Handle of the storage key: made anew from the TPM's seed, always the same one."""
        body = _sized(_sized(b"") + _sized(b"")) + _sized(_STORAGE_KEY) + _sized(b"") + bytes(4)
        (handle,) = struct.unpack_from(">I", self.command(_CREATE_PRIMARY, [_OWNER], body, handles=1))
        self.opened.append(handle)
        return int(handle)

    def policy_session(self, bank: str) -> int:
        """Handle of a session that proved what PCR 11 is."""
        body = _sized(bytes(16)) + _sized(b"") + struct.pack(">BHH", 1, 0x10, 0x0B)
        found = self.command(_START_SESSION, [_NULL, _NULL], body, handles=1, tag=_PLAIN)
        (handle,) = struct.unpack_from(">I", found)
        self.opened.append(handle)
        self.command(_POLICY_PCR, [handle], _sized(b"") + measure.selection(bank), tag=_PLAIN)
        return int(handle)

    def command(
        self, code: int, objects: list[int], body: bytes, *, handles: int = 0, tag: int = _SESSIONS,
        session: int = _PASSWORD,
    ) -> bytes:  # fmt: skip
        """Returns the handles of the response (`handles` of them), and its parameters."""
        head = b"".join(struct.pack(">I", one) for one in objects)
        auth = struct.pack(">IHBH", session, 0, 0, 0)
        area = struct.pack(">I", len(auth)) + auth if tag == _SESSIONS else b""
        whole = struct.pack(">HII", tag, 10 + len(head + area + body), code) + head + area + body
        reply = self._channel(whole)
        if len(reply) < 10:
            raise BootError("the TPM gave no answer", hint="is it switched on in the firmware?")
        answer_tag, _, status = struct.unpack_from(">HII", reply)
        if status:
            raise BootError(
                _why(status), hint="this image, or this machine, is not the one it was sealed for"
            )
        given = reply[10 : 10 + 4 * handles]
        rest = reply[10 + 4 * handles :]
        if answer_tag == _SESSIONS:
            (size,) = struct.unpack_from(">I", rest)
            rest = rest[4 : 4 + size]
        return given + rest

    def _device(self, command: bytes) -> bytes:
        if self._fd < 0:
            path = next((path for path in DEVICES if os.path.exists(path)), None)
            if path is None:
                raise BootError(
                    "this machine has no TPM", hint="switch it on in the firmware, or use another key"
                )
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.write(self._fd, command)
        return os.read(self._fd, MAX_RESPONSE_BYTES)


def _why(status: int) -> str:
    kind = status & 0xBF if status & 0x80 else status  # without the number of the parameter or session
    known = {
        0x9D: "PCR 11 has another value than the secret was sealed for",
        0x9F: "another TPM sealed this secret, or it is damaged",
    }
    return known.get(kind, f"the TPM refuses (code {status:#x})")


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _take(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < 2 or len(data) - 2 < (size := struct.unpack_from(">H", data)[0]):
        raise BootError(
            "the TPM's answer is too short", hint="try again; then look at the kernel's log (dmesg)"
        )
    return data[2 : 2 + size], data[2 + size :]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
