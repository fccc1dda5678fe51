"""How does a node prove itself to a server, and the server itself to the node?

The client's side of joining: fetch `/cacerts` without trust, compare its hash with the token's, and trust
only that from then on.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from p2p_simulations.k3s import https, log, tokens
from p2p_simulations.k3s.errors import HttpError, K3sError


@dataclass(frozen=True, slots=True)
class Access:
    """A server whose CA was checked, and the credentials for it."""

    url: str
    ca: str
    user: str
    password: str

    def context(self, cert: str | None = None, key: str | None = None) -> ssl.SSLContext:
        return https.client_context(ca_data=self.ca, cert=cert, key=key)

    async def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> bytes:
        """The body of a 200 answer. Raises HttpError or https.RequestFailed."""
        basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        sent = {"Authorization": f"Basic {basic}", **(headers or {})}
        url = self.url + path
        reply = await https.request(method, url, self.context(), headers=sent, body=body, timeout_s=timeout_s)
        if reply.status != 200:
            raise HttpError(reply.status, _why(url, reply))
        return reply.body


def _why(url: str, reply: https.Reply) -> str:
    """As k3s: the message of a Kubernetes Status, else address and status line."""
    try:
        document = reply.json()
        if document["kind"] == "Status":
            return str(document["message"])
    except (ValueError, KeyError, TypeError):
        pass
    return f"{url}: {reply.status} {https.REASONS.get(reply.status, '')}".rstrip()


async def validate(url: str, token: str, user: str, *, trusted_ca: str | None = None) -> Access:
    """Check the server at `url` against the token.

    Args:
        user: which account to use with the token's password ("server" or "node").
        trusted_ca: a CA bundle that this node has already; used if the token's hash agrees.

    Raises:
        K3sError: with k3s's text, if there is no server, or another cluster's.
    """
    parsed = tokens.parse(token)
    if urlsplit(url).scheme != "https":
        raise K3sError(f"only https:// URLs are supported, invalid scheme: {url}")
    url = url.rstrip("/")
    ca = trusted_ca if trusted_ca and parsed.ca_hash in ("", tokens.hash_of(trusted_ca.encode())) else None
    if ca is None:
        ca = await _fetch_ca(url)
    found = tokens.hash_of(ca.encode())
    if not parsed.ca_hash:
        log.warning(
            "Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a "
            "CA hash. Use the full token from the server's node-token file to enable Cluster CA validation."
        )
    elif parsed.ca_hash != found:
        raise K3sError(
            f"token CA hash does not match the Cluster CA certificate hash: {parsed.ca_hash} != {found}"
        )
    return Access(url, ca, user, parsed.password)


async def _fetch_ca(url: str) -> str:
    try:
        reply = await https.request("GET", f"{url}/cacerts", https.client_context())
        if reply.status != 200:
            raise K3sError(f"failed to get CA certs: {url}/cacerts: {reply.status}")
        ca = reply.body.decode()
    except (https.RequestFailed, UnicodeDecodeError) as exc:
        raise K3sError(f"failed to get CA certs: {exc}") from exc
    tokens.hash_of(ca.encode())
    try:
        await https.request("GET", f"{url}/cacerts", https.client_context(ca_data=ca))
    except (https.RequestFailed, ssl.SSLError) as exc:
        raise K3sError(f"CA cert validation failed: {exc}") from exc
    return ca
