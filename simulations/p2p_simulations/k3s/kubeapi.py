"""What does the stand-in's Kubernetes API answer?

Lists, objects, conflicts, watches and discovery for the kinds of `objects.KINDS`, as kubectl and client
libraries expect them. Who may do what is two rules: `system:masters` everything, a kubelet its own Node
and lease. Every read waits until this server holds all that was acknowledged before.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from p2p_simulations.k3s import objects
from p2p_simulations.k3s.datastore import Datastore
from p2p_simulations.k3s.errors import HttpError, Unavailable
from p2p_simulations.k3s.https import Request, Response, json_response
from p2p_simulations.k3s.objects import Kind
from p2p_simulations.k3s.state import Change, Object

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def now_micro_text() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"


async def create(store: Datastore, kind: Kind, item: Object) -> Object:
    """Store a new object. Raises HttpError (409 AlreadyExists) or Unavailable."""
    meta = item["metadata"]
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = now_text()
    return await _write(store, kind, meta["name"], meta.get("namespace", ""), item, expect=0)


async def _write(
    store: Datastore, kind: Kind, name: str, namespace: str, item: Object, *, expect: int | None
) -> Object:
    key = kind.prefix(namespace) + name
    outcome = await store.propose({"op": "put", "key": key, "object": item, "expect": expect})
    shown = f'{kind.plural}{"." + kind.group if kind.group else ""} "{name}"'
    if outcome.verdict == "exists":
        raise HttpError(409, f"{shown} already exists")
    if outcome.verdict == "missing":
        raise HttpError(404, f"{shown} not found")
    if outcome.verdict == "conflict":
        raise HttpError(
            409,
            f"Operation cannot be fulfilled on {shown}: the object has been modified; "
            "please apply your changes to the latest version and try again",
        )
    assert outcome.object is not None
    return outcome.object


async def update(store: Datastore, kind: Kind, item: Object) -> Object:
    """Replace an object; its `resourceVersion`, if given, must be the stored one."""
    meta = item["metadata"]
    version = meta.get("resourceVersion") or ""
    namespace = meta.get("namespace", "")
    stored = store.state.get(kind.prefix(namespace) + meta["name"])
    if stored is None:
        raise HttpError(404, f'{kind.plural} "{meta["name"]}" not found')
    expect = int(version) if version.isdigit() else int(stored["metadata"]["resourceVersion"])
    return await _write(store, kind, meta["name"], namespace, item, expect=expect)


async def amend(
    store: Datastore, kind: Kind, name: str, change: Callable[[Object], Object | None]
) -> Object | None:
    """Read, change, write; again on a conflict. `change` returns the new object or None for "leave it"."""
    for _ in range(8):
        await store.barrier()
        stored = store.state.get(kind.prefix() + name)
        if stored is None:
            return None
        new = change(json.loads(json.dumps(stored)))
        if new is None:
            return stored
        try:
            return await update(store, kind, new)
        except HttpError as exc:
            if exc.status != 409:
                raise
    raise Unavailable(f"{name} changes too fast")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396; kubectl's strategic patches of labels and annotations mean the same."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


class KubeApi:
    """`ready`: is the API up (it starts after the datastore)? `address`: host:port as clients see it."""

    def __init__(self, store: Datastore, address: str) -> None:
        self._store = store
        self._address = address
        self.up = False

    async def handle(self, request: Request) -> Response:
        try:
            return await self._route(request)
        except HttpError as exc:
            reason = "AlreadyExists" if exc.status == 409 and "already exists" in str(exc) else ""
            return json_response(exc.status, objects.status(exc.status, str(exc), reason))
        except Unavailable as exc:
            return json_response(500, objects.status(500, str(exc)))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            return json_response(400, objects.status(400, f"the object provided is unrecognized: {exc}"))

    def health(self, path: str, query: dict[str, str]) -> Response:
        """`/readyz`, `/livez`, `/healthz`."""
        fault = self._store.fault()
        name = path.strip("/")
        if not fault and "verbose" not in query:
            return Response(200, b"ok")
        etcd = "[-]etcd failed: reason withheld" if fault else "[+]etcd ok"
        end = f"{name} check {'failed' if fault else 'passed'}"
        return Response(500 if fault else 200, f"[+]ping ok\n{etcd}\n{end}\n".encode())

    async def _route(self, request: Request) -> Response:
        if not request.user:
            raise HttpError(401, "Unauthorized")
        if not self.up:
            raise HttpError(503, "apiserver not ready")
        path = request.path.rstrip("/")
        if path in ("/readyz", "/livez", "/healthz"):
            return self.health(path, dict(request.query))
        parts = path.split("/")[1:]
        match parts:
            case ["version"]:
                return json_response(200, objects.version_info())
            case ["api"]:
                return json_response(200, objects.api_versions(self._address))
            case ["apis"]:
                return json_response(200, objects.api_groups())
            case ["apis", group] if any(k.group == group for k in objects.KINDS):
                return json_response(200, objects.api_group(group))
            case ["api", "v1"]:
                return json_response(200, objects.api_resources(""))
            case ["apis", group, "v1"] if any(k.group == group for k in objects.KINDS):
                return json_response(200, objects.api_resources(group))
            case ["api", "v1", *rest]:
                return await self._resource(request, "", rest)
            case ["apis", group, "v1", *rest]:
                return await self._resource(request, group, rest)
            case _:
                raise HttpError(404, "the server could not find the requested resource")

    async def _resource(self, request: Request, group: str, rest: list[str]) -> Response:
        namespace = ""
        if len(rest) >= 3 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = next((k for k in objects.KINDS if k.group == group and k.plural == rest[0]), None)
        name = rest[1] if len(rest) > 1 else ""
        below = rest[2] if len(rest) == 3 else ""
        evicts = below == "eviction" and rest[0] == "pods" and request.method == "POST"
        if kind is None or len(rest) > 3 or (below not in ("", "status") and not evicts):
            raise HttpError(404, "the server could not find the requested resource")
        self._authorize(request, kind, name, namespace)
        await self._store.barrier()
        if evicts:  # no disruption budgets here: the pod goes at once
            return json_response(201, await self._delete(request, kind, namespace, name, {}))
        if request.method == "GET":
            return self._read(request, kind, namespace, name)
        if request.method == "POST" and not name:
            item = self._item(request.json(), kind, namespace)
            return json_response(201, await create(self._store, kind, item))
        if request.method == "PUT" and name:
            item = self._item(request.json(), kind, namespace)
            if item["metadata"]["name"] != name:
                raise HttpError(400, "the name of the object does not match the name on the URL")
            return json_response(200, await update(self._store, kind, item))
        if request.method == "PATCH" and name:
            return json_response(200, await self._patch(request, kind, namespace, name))
        if request.method == "DELETE" and name:
            return json_response(200, await self._delete(request, kind, namespace, name))
        raise HttpError(405, "the server does not allow this method on the requested resource")

    def _authorize(self, request: Request, kind: Kind, name: str, namespace: str) -> None:
        if "system:masters" in request.groups:
            return
        own = request.user.removeprefix("system:node:")
        kubelet = "system:nodes" in request.groups and own != request.user
        if kubelet and kind.plural == "nodes" and request.method != "DELETE":
            body_name = request.json()["metadata"]["name"] if request.method == "POST" else name
            if request.method == "GET" or body_name == own:
                return
        if kubelet and kind.plural == "leases" and namespace == "kube-node-lease" and name in ("", own):
            return
        raise HttpError(
            403,
            f'{kind.plural} is forbidden: User "{request.user}" cannot {request.method.lower()} resource '
            f'"{kind.plural}" in API group "{kind.group}"',
        )

    def _item(self, item: Any, kind: Kind, namespace: str) -> Object:
        if not isinstance(item, dict) or item.get("kind", kind.kind) != kind.kind:
            raise HttpError(400, f"the object provided is no {kind.kind}")
        meta = item.setdefault("metadata", {})
        name = meta.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= 253 or not set(name) <= NAME_CHARACTERS:
            raise HttpError(422, f'{kind.kind} "{name}" is invalid: metadata.name: Invalid value')
        item["kind"], item["apiVersion"] = kind.kind, kind.api_version
        if kind.namespaced:
            meta["namespace"] = namespace
            if self._store.state.get(f"/registry/namespaces/{namespace}") is None:
                raise HttpError(404, f'namespaces "{namespace}" not found')
        return item

    def _read(self, request: Request, kind: Kind, namespace: str, name: str) -> Response:
        state, now_s = self._store.state, time.time()
        as_table = "as=Table" in request.headers.get("accept", "")
        if name:
            item = state.get(kind.prefix(namespace) + name)
            if item is None:
                raise HttpError(404, f'{kind.plural} "{name}" not found')
            return json_response(
                200, objects.table(kind, [item], state.revision, now_s) if as_table else item
            )
        wanted = _selector(request.query)
        if request.query.get("watch") in ("1", "true"):
            return Response(
                200,
                content_type="application/json",
                stream=self._watch(request, kind, namespace, wanted, as_table),
            )
        items = [item for item in state.list(kind.prefix(namespace)) if wanted(item)]
        if as_table:
            return json_response(200, objects.table(kind, items, state.revision, now_s))
        return json_response(
            200,
            {
                "kind": f"{kind.kind}List",
                "apiVersion": kind.api_version,
                "metadata": {"resourceVersion": str(state.revision)},
                "items": items,
            },
        )

    async def _watch(
        self, request: Request, kind: Kind, namespace: str, wanted: Callable[[Object], bool], as_table: bool
    ) -> AsyncIterator[bytes]:
        store = self._store
        deadline = asyncio.get_running_loop().time() + min(
            float(request.query.get("timeoutSeconds", "300")), 3600
        )
        version = request.query.get("resourceVersion", "")
        prefix = kind.prefix(namespace)
        if version.isdigit() and version != "0":
            seen = int(version)
        else:
            seen = store.state.revision
            for item in list(store.state.list(prefix)):
                if wanted(item):
                    yield _watch_line(kind, Change(seen, "ADDED", "", item), as_table)
        while asyncio.get_running_loop().time() < deadline:
            if (
                store.state.changes
                and store.state.changes[0].revision > seen + 1
                and len(store.state.changes) >= 512
            ):
                yield json.dumps(
                    {"type": "ERROR", "object": objects.status(410, "too old resource version")}
                ).encode()
                return
            for change in [c for c in store.state.changes if c.revision > seen]:
                if change.key.startswith(prefix) and wanted(change.object):
                    yield _watch_line(kind, change, as_table)
            seen = store.state.revision
            await store.changed()

    async def _patch(self, request: Request, kind: Kind, namespace: str, name: str) -> Object:
        if "json-patch" in request.headers.get("content-type", ""):
            raise HttpError(415, "the stand-in takes merge patches only")
        patch = request.json()
        for _ in range(8):
            stored = self._store.state.get(kind.prefix(namespace) + name)
            if stored is None:
                raise HttpError(404, f'{kind.plural} "{name}" not found')
            item = self._item(merge_patch(stored, patch), kind, namespace)
            try:
                return await update(self._store, kind, item)
            except HttpError as exc:
                if exc.status != 409 or "resourceVersion" in patch.get("metadata", {}):
                    raise
        raise Unavailable(f"{name} changes too fast")

    async def _delete(
        self, request: Request, kind: Kind, namespace: str, name: str, options: Object | None = None
    ) -> Object:
        if options is None:
            options = request.json() if request.body else {}
        wanted = str((options.get("preconditions") or {}).get("resourceVersion") or "")
        key = kind.prefix(namespace) + name
        if kind.plural == "namespaces" and name in (
            "default",
            "kube-system",
            "kube-public",
            "kube-node-lease",
        ):
            raise HttpError(403, f'namespaces "{name}" is forbidden: this namespace may not be deleted')
        expect = int(wanted) if wanted.isdigit() else None
        outcome = await self._store.propose({"op": "delete", "key": key, "expect": expect})
        if outcome.verdict == "missing":
            raise HttpError(404, f'{kind.plural} "{name}" not found')
        if outcome.verdict == "conflict":
            raise HttpError(
                409, f'Operation cannot be fulfilled on {kind.plural} "{name}": the object has been modified'
            )
        details = {"name": name, "kind": kind.plural}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _watch_line(kind: Kind, change: Change, as_table: bool) -> bytes:
    item = objects.table(kind, [change.object], change.revision, time.time()) if as_table else change.object
    return json.dumps({"type": change.kind, "object": item}, separators=(",", ":")).encode() + b"\n"


def _selector(query: Any) -> Callable[[Object], bool]:
    """Equality selectors of `labelSelector`, and `metadata.name=` of `fieldSelector`."""
    terms = [t for t in query.get("labelSelector", "").split(",") if t]
    fields = [t for t in query.get("fieldSelector", "").split(",") if t]

    def wanted(item: Object) -> bool:
        labels = item["metadata"].get("labels") or {}
        for term in terms:
            key, operator, value = term.replace("==", "=").partition("=")
            if key.endswith("!"):
                if labels.get(key[:-1]) == value:
                    return False
            elif (key not in labels) if not operator else labels.get(key) != value:
                return False
        return all(
            field.partition("=")[0] == "metadata.name" and item["metadata"]["name"] == field.partition("=")[2]
            for field in fields
        )

    return wanted
