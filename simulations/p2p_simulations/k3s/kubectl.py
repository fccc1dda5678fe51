"""What does `k3s kubectl` show? What a person needs: get, delete, version, cluster-info."""

from __future__ import annotations

import base64
import json
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2p_simulations.k3s import VERSION, objects
from p2p_simulations.k3s.errors import K3sError
from p2p_simulations.k3s.objects import Kind
from p2p_simulations.k3s.process import etc_dir


class Client:
    """The API of a kubeconfig."""

    def __init__(self, path: Path) -> None:
        import yaml

        try:
            document = yaml.safe_load(path.read_text())
            cluster = document["clusters"][0]["cluster"]
            user = document["users"][0]["user"]
            self.server: str = cluster["server"]
            ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
            pair = [base64.b64decode(user[f"client-{kind}-data"]) for kind in ("certificate", "key")]
        except FileNotFoundError:
            raise K3sError(f"error: stat {path}: no such file or directory") from None
        except (OSError, KeyError, TypeError, IndexError, ValueError, yaml.YAMLError) as exc:
            raise K3sError(f'error loading config file "{path}": {exc}') from exc
        self._context = ssl.create_default_context(cadata=ca)
        self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with tempfile.NamedTemporaryFile() as file:  # 0600; ssl loads keys from files only
            file.write(b"\n".join(pair))
            file.flush()
            self._context.load_cert_chain(file.name)

    def call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self.server + path, method=method)  # noqa: S310 - of the kubeconfig
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=20) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            try:
                status = json.load(exc)
            except ValueError:
                status = {"reason": str(exc.code), "message": exc.reason}
            raise K3sError(f"Error from server ({status.get('reason')}): {status.get('message')}") from exc
        except (urllib.error.URLError, OSError) as exc:
            host = self.server.removeprefix("https://")
            raise K3sError(
                f"The connection to the server {host} was refused - did you specify the right host or port?"
            ) from exc


def run(argv: Sequence[str], env: dict[str, str]) -> int:
    """Returns the exit status. Raises K3sError."""
    words, options = _options(argv)
    path = Path(options.get("kubeconfig") or env.get("KUBECONFIG") or etc_dir() / "k3s" / "k3s.yaml")
    match words:
        case ["version"]:
            sys.stdout.write(f"Client Version: {VERSION}\n")
            sys.stdout.write(f"Server Version: {Client(path).call('GET', '/version')['gitVersion']}\n")
        case ["cluster-info"]:
            client = Client(path)
            client.call("GET", "/version")
            sys.stdout.write(f"Kubernetes control plane (simulated) is running at {client.server}\n")
        case ["get", resource, *names]:
            _get(Client(path), resource, names, options)
        case ["delete", resource, name, *more]:
            kind, first = _kind(resource)
            client = Client(path)
            for item in [*([first] if first else []), name, *more]:
                client.call("DELETE", _path(kind, options.get("namespace", "default")) + f"/{item}")
                sys.stdout.write(f'{kind.kind.lower()} "{item}" deleted\n')
        case _:
            raise K3sError(
                f"error: the stand-in's kubectl knows get, delete, version, cluster-info; not {words}"
            )
    return 0


_SHORT = {"-o": "output", "-n": "namespace", "-l": "selector", "-A": "all"}


def _options(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    words, options = [], {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            words.append(word)
        elif name in ("-A", "--all-namespaces", "--no-headers"):
            options[_SHORT.get(name, name.lstrip("-"))] = "true"
        elif word[:2] in _SHORT and not word.startswith("--") and len(word) > 2 and not value:
            options[_SHORT[word[:2]]] = word[2:]
        else:
            options[_SHORT.get(name, name.lstrip("-"))] = value or (rest.pop(0) if rest else "")
    return words, options


def _kind(resource: str) -> tuple[Kind, str]:
    resource, _, name = resource.partition("/")
    for kind in objects.KINDS:
        if resource.lower() in (kind.plural, kind.kind.lower(), *kind.short):
            return kind, name
    raise K3sError(f'error: the server doesn\'t have a resource type "{resource}"')


def _path(kind: Kind, namespace: str) -> str:
    root = f"/apis/{kind.group}/v1" if kind.group else "/api/v1"
    inside = f"/namespaces/{namespace}" if kind.namespaced and namespace else ""
    return f"{root}{inside}/{kind.plural}"


def _get(client: Client, resource: str, names: list[str], options: dict[str, str]) -> None:
    kind, first = _kind(resource)
    names = [*([first] if first else []), *names]
    everywhere = "all" in options or "all-namespaces" in options
    path = _path(kind, "" if everywhere else options.get("namespace", "default"))
    selector = f"?labelSelector={urllib.parse.quote(options['selector'])}" if "selector" in options else ""
    if names:
        items = [client.call("GET", f"{path}/{name}") for name in names]
    else:
        items = client.call("GET", path + selector)["items"]
    output = options.get("output", "")
    whole = items[0] if len(names) == 1 else {"apiVersion": "v1", "kind": "List", "items": items}
    if output == "json":
        sys.stdout.write(json.dumps(whole, indent=4) + "\n")
    elif output == "yaml":
        import yaml

        sys.stdout.write(yaml.safe_dump(whole, sort_keys=True))
    elif output == "name":
        sys.stdout.write("".join(f"{kind.kind.lower()}/{item['metadata']['name']}\n" for item in items))
    elif output in ("", "wide"):
        _print(kind, items, wide=output == "wide", headings="no-headers" not in options)
    else:
        raise K3sError(f'error: unable to match a printer suitable for the output format "{output}"')


def _print(kind: Kind, items: list[Any], *, wide: bool, headings: bool) -> None:
    if not items:
        sys.stderr.write("No resources found\n")
        return
    shown = [i for i, (_, priority) in enumerate(objects.columns(kind)) if wide or priority == 0]
    rows = [[str(objects.row(kind, item, time.time())[i]) for i in shown] for item in items]
    if headings:
        rows.insert(0, [objects.columns(kind)[i][0].upper() for i in shown])
    widths = [max(len(line[i]) for line in rows) for i in range(len(shown))]
    for line in rows:
        cells = [cell.ljust(width + 3) for cell, width in zip(line, widths, strict=True)]
        sys.stdout.write("".join(cells).rstrip() + "\n")
