"""How is a configuration fetched over http(s)?

Apart from `remote`, which decides what may be fetched and whether it is what was meant: TLS and HTTP weigh
5 MB, and an initramfs, which has no network yet, shall not carry them.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from typing import IO, Any, Final

from p2p_bootstrap.cloudconfig.remote import Source
from p2p_network.core.errors import P2PError

TIMEOUT_S: Final = 30.0


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https down to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise urllib.error.URLError("redirects from https to plain http")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch_http(address: str, limit: int, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """Get an http(s) address; certificates are verified against the system's authorities. Raises P2PError."""
    public = Source(address).public()
    opener = urllib.request.build_opener(
        SafeRedirects(), urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    try:
        with opener.open(address, timeout=timeout_s) as answer:
            data = answer.read(limit + 1)
            assert isinstance(data, bytes), "a binary body"
            return data
    except urllib.error.HTTPError as exc:
        raise P2PError(f"{public} answers {exc.code} {exc.reason}", hint="check the address") from exc
    except urllib.error.URLError as exc:
        reason = exc.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            why = f"its certificate is not trusted: {reason.verify_message}"
            raise P2PError(f"{public}: {why}", hint="add the authority to the image's trust store") from exc
        raise P2PError(f"{public} can't be reached: {reason}", hint="check the network and the name") from exc
    except (OSError, ValueError) as exc:
        raise P2PError(f"{public} can't be reached: {exc}", hint="check the network and the name") from exc
