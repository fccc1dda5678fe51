"""Is the k3s on this machine ready, and which cluster does it serve?

Blocking look-ups for a thread, standard library only. A server is asked at its own ``/readyz`` with the
admin's kubeconfig, its CA pinned; then for its kube-system namespace's UID and the hash of what
``/cacerts`` serves. An agent is ready when its kubelet's ``/healthz`` is.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from p2p_roles.k3s.pki import bundle_hash

KUBELET_PORT: Final = 10248
_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_KUBECONFIG_BYTES: Final = 1 << 20


class NotReady(Exception):
    """It is not ready; the text says what was asked and what came back."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """A ready k3s. `uid`, `ca_hash`: of the cluster; "" on an agent."""

    uid: str = ""
    ca_hash: str = ""


def server_ready(kubeconfig: Path, *, timeout_s: float = 3.0) -> Readiness:
    """The server's readiness. Raises NotReady."""
    address, context = admin_access(kubeconfig)
    try:
        connection = http.client.HTTPSConnection(
            address.hostname or "127.0.0.1", address.port or 443, timeout=timeout_s, context=context
        )
        try:
            _get(connection, "/readyz")
            namespace: Any = json.loads(_get(connection, "/api/v1/namespaces/kube-system"))
            authorities = _get(connection, "/cacerts")
        finally:
            connection.close()
        uid = namespace["metadata"]["uid"]
        if not isinstance(uid, str) or not 0 < len(uid) <= 64:
            raise NotReady("the kube-system namespace has no UID yet")
        return Readiness(uid, bundle_hash(authorities))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as exc:
        raise NotReady(f"{address.netloc} does not answer: {exc}") from exc


def agent_ready(*, port: int = KUBELET_PORT, timeout_s: float = 3.0) -> Readiness:
    """The agent's readiness. Raises NotReady."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            _get(connection, "/healthz")
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        raise NotReady(f"the kubelet does not answer: {exc}") from exc
    return Readiness()


def _get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read(_MAX_ANSWER_BYTES)
    response.read()  # what is left, so that the connection can be used again
    if response.status != 200:
        raise NotReady(f"{path} answers {response.status}")
    return body


def admin_access(kubeconfig: Path) -> tuple[Any, ssl.SSLContext]:
    """Address and TLS context (client certificate, pinned CA) of a kubeconfig. Raises NotReady."""
    try:
        with kubeconfig.open("rb") as file:
            document: Any = yaml.safe_load(file.read(_MAX_KUBECONFIG_BYTES))
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=_pem(cluster["certificate-authority-data"]).decode())
        _load_pair(context, _pem(user["client-certificate-data"]) + _pem(user["client-key-data"]))
        return urlsplit(cluster["server"]), context
    except FileNotFoundError:
        raise NotReady(f"{kubeconfig} is not written yet") from None
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, ValueError, RecursionError) as exc:
        raise NotReady(f"{kubeconfig} cannot be used: {exc}") from exc


def _pem(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise ValueError(f"not base64: {exc}") from exc


def _load_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """`load_cert_chain` wants a path: give it memory, so that the admin's key is in no other file."""
    descriptor = os.memfd_create("kubeconfig", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
