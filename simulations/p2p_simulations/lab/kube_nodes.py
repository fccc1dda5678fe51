"""Which nodes does the cluster itself list? A program that runs inside a node, by path.

Reads a kubeconfig from standard input, asks its server ``GET /api/v1/nodes`` over TLS (server checked
against the kubeconfig's CA, client authenticated by its certificate or token) and writes
``{"url": ..., "nodes": <NodeList>}`` to standard output. Standard library and PyYAML only, so it works with
any k3s. A failure is one sentence on standard error and exit status 1.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import sys
import tempfile
from typing import Any
from urllib.parse import urlsplit

import yaml

MAX_KUBECONFIG_CHARS = 256 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
TIMEOUT_S = 5.0


def main() -> int:
    """Read, ask, write."""
    try:
        kubeconfig = yaml.safe_load(sys.stdin.read(MAX_KUBECONFIG_CHARS))
        url, nodes = fetch(kubeconfig)
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, http.client.HTTPException) as exc:
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        return 1
    json.dump({"url": url, "nodes": nodes}, sys.stdout)
    return 0


def fetch(kubeconfig: Any) -> tuple[str, Any]:
    """The server's URL and its NodeList."""
    if not isinstance(kubeconfig, dict):
        raise ValueError("this is no kubeconfig")
    cluster, user = _current(kubeconfig)
    url = str(cluster["server"])
    target = urlsplit(url)
    if target.scheme != "https" or not target.hostname:
        raise ValueError(f"the kubeconfig's server is {url!r}, not an https address")
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    headers = {"Accept": "application/json"}
    if "token" in user:
        headers["Authorization"] = f"Bearer {user['token']}"
    else:
        with tempfile.NamedTemporaryFile() as pem:  # ssl reads client certificates only from files
            pem.write(base64.b64decode(user["client-certificate-data"]) + b"\n")
            pem.write(base64.b64decode(user["client-key-data"]))
            pem.flush()
            context.load_cert_chain(pem.name)
    connection = http.client.HTTPSConnection(
        target.hostname, target.port or 443, timeout=TIMEOUT_S, context=context
    )
    try:
        connection.request("GET", "/api/v1/nodes", headers=headers)
        response = connection.getresponse()
        raw = response.read(MAX_ANSWER_BYTES)
    finally:
        connection.close()
    if response.status != 200:
        said = raw[:200].decode(errors="replace")
        raise ValueError(f"{url}/api/v1/nodes answered {response.status}: {said}")
    return url, json.loads(raw)


def _current(kubeconfig: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster and the user of the current context."""

    def named(kind: str, name: str) -> Any:
        for entry in kubeconfig[f"{kind}s"]:
            if entry["name"] == name:
                return entry[kind]
        raise ValueError(f"the kubeconfig has no {kind} {name!r}")

    context = named("context", kubeconfig["current-context"])
    return named("cluster", context["cluster"]), named("user", context["user"])


if __name__ == "__main__":
    sys.exit(main())
