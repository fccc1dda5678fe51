"""What do the clouds say about this machine? One table of their metadata services, and one way to ask.

Data only: where each answers, which headers it wants, which path proves that it is there, and where user
data, host name and SSH keys lie. All of them are plain HTTP on link-local addresses that only the cloud
can answer.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2p_network.core.errors import BootError

MAX_BYTES: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 2.0
_LINK_LOCAL: Final = "http://169.254.169.254"


@dataclass(frozen=True, slots=True)
class UserData:
    """What a provider knows. `details`: file name -> value, for ``/run/config``."""

    provider: str
    userdata: bytes | None
    hostname: str = ""
    keys: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


Get = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Cloud:
    """One metadata service.

    Attributes:
        base: its address.
        probe: a path that only it answers.
        userdata, hostname: paths.
        headers: wanted with each request.
        keys: the path of SSH keys, and how they are read from the answer.
        details: path -> file name.
        token: path and headers of a session's token (AWS's IMDSv2), sent as `token_header`.
        decode: of the user data.
    """

    base: str
    probe: str
    userdata: str
    hostname: str
    keys: str = ""
    read_keys: Callable[[str], Sequence[str]] = lambda text: text.splitlines()
    headers: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    token: str = ""
    decode: Callable[[bytes], bytes] = lambda data: data


def _json_or_lines(text: str) -> Sequence[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return text.splitlines()
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def _google_keys(text: str) -> Sequence[str]:
    """``user:ssh-ed25519 AAAA… comment``: the key without its user."""
    return [line.partition(":")[2] for line in text.splitlines() if ":" in line]


def unbase64(data: bytes) -> bytes:
    """Decode base64 with line breaks. Raises BootError."""
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BootError("the user data is not base64", hint="set it again") from None


_EC2: Final = {
    "/latest/meta-data/public-ipv4": "public_ipv4",
    "/latest/meta-data/local-ipv4": "local_ipv4",
    "/latest/meta-data/placement/availability-zone": "availability_zone",
    "/latest/meta-data/instance-type": "instance_type",
    "/latest/meta-data/instance-id": "instance_id",
    "/latest/meta-data/local-hostname": "local_hostname",
}
_AZURE: Final = "?api-version=2021-01-01&format=text"

CLOUDS: Final[Mapping[str, Cloud]] = {
    "aws": Cloud(
        _LINK_LOCAL, "/latest/meta-data/hostname", "/latest/user-data", "/latest/meta-data/hostname",
        keys="/latest/meta-data/public-keys/0/openssh-key", details=_EC2, token="/latest/api/token",  # noqa: S106 - a path
    ),
    "openstack": Cloud(
        _LINK_LOCAL, "/openstack", "/openstack/latest/user_data", "/latest/meta-data/hostname",
        keys="/latest/meta-data/public-keys/0/openssh-key", details=_EC2,
    ),
    "azure": Cloud(
        _LINK_LOCAL, f"/metadata/instance/compute/vmId{_AZURE}",
        f"/metadata/instance/compute/userData{_AZURE}", f"/metadata/instance/compute/name{_AZURE}",
        keys=f"/metadata/instance/compute/publicKeys/0/keyData{_AZURE}", headers={"Metadata": "true"},
        details={
            f"/metadata/instance/compute/zone{_AZURE}": "compute_zone",
            f"/metadata/instance/compute/vmId{_AZURE}": "compute_vmId",
            f"/metadata/instance/network/interface/0/ipv4/ipAddress/0/publicIpAddress{_AZURE}": "public_ipv4",
            f"/metadata/instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress{_AZURE}": "local_ipv4",
        },
        decode=unbase64,
    ),
    "gcp": Cloud(
        "http://metadata.google.internal", "/computeMetadata/v1/instance/hostname",
        "/computeMetadata/v1/instance/attributes/user-data", "/computeMetadata/v1/instance/hostname",
        keys="/computeMetadata/v1/project/attributes/ssh-keys", read_keys=_google_keys,
        headers={"Metadata-Flavor": "Google"},
    ),
    "hetzner": Cloud(
        _LINK_LOCAL, "/hetzner/v1/metadata/instance-id", "/hetzner/v1/userdata",
        "/hetzner/v1/metadata/hostname", keys="/hetzner/v1/metadata/public-keys", read_keys=_json_or_lines,
        details={
            "/hetzner/v1/metadata/public-ipv4": "public_ipv4",
            "/hetzner/v1/metadata/instance-id": "instance_id",
            "/hetzner/v1/metadata/availability-zone": "availability_zone",
        },
    ),
    "digitalocean": Cloud(
        _LINK_LOCAL, "/metadata/v1/id", "/metadata/v1/user-data", "/metadata/v1/hostname",
        keys="/metadata/v1/public-keys",
        details={
            "/metadata/v1/interfaces/public/0/ipv4/address": "public_ipv4",
            "/metadata/v1/interfaces/private/0/ipv4/address": "private_ipv4",
            "/metadata/v1/region": "region",
            "/metadata/v1/id": "id",
        },
    ),
    "vultr": Cloud(
        _LINK_LOCAL, "/v1/instanceid", "/user-data/user-data", "/v1/hostname", keys="/v1/public-keys",
        details={
            "/v1/interfaces/0/ipv4/address": "public_ipv4",
            "/v1/interfaces/1/ipv4/address": "private_ipv4",
            "/v1/interfaces/1/ipv4/netmask": "private_netmask",
            "/v1/region/regioncode": "region_code",
            "/v1/instanceid": "instance_id",
        },
    ),
}  # fmt: skip


class Absent(Exception):
    """The service doesn't answer here, or hasn't got that."""


def get(address: str, headers: Mapping[str, str], *, method: str = "GET", low_port: bool = False) -> bytes:
    """Ask once, within `TIMEOUT_S`, never through a proxy. Raises Absent."""
    request = urllib.request.Request(address, headers=dict(headers), method=method)  # noqa: S310 - http
    handler = _LowPort() if low_port else urllib.request.HTTPHandler()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            data = answer.read(MAX_BYTES + 1)
            assert isinstance(data, bytes), "a binary body"
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise Absent(str(exc)) from exc
    if len(data) > MAX_BYTES:
        raise Absent(f"the answer is larger than {MAX_BYTES} bytes")
    return data


class _LowPort(urllib.request.HTTPHandler):
    """Scaleway gives user data only to root: the asking port must be below 1024."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        last: OSError = OSError("no port below 1024 is free")
        for port in range(1023, 900, -1):
            try:
                return self.do_open(http.client.HTTPConnection, req, source_address=("", port))
            except urllib.error.URLError as exc:
                last = exc.reason if isinstance(exc.reason, OSError) else exc
                if "in use" not in str(last):
                    break
        raise last


def ask(name: str, base: str = "") -> UserData:
    """What a cloud knows. `base`: where it answers instead of its own address. Raises Absent."""
    if name == "packet":
        return _packet(base or "https://metadata.platformequinix.com")
    if name == "scaleway":
        return _scaleway(base or "http://169.254.42.42")
    cloud = CLOUDS[name]
    base = base or cloud.base
    headers = dict(cloud.headers)
    if cloud.token:
        try:
            wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
            token = get(base + cloud.token, wanted, method="PUT").decode("ascii", "replace").strip()
            headers["X-aws-ec2-metadata-token"] = token
        except Absent:
            pass  # IMDSv1 has no tokens
    get(base + cloud.probe, headers)

    def maybe(path: str) -> bytes | None:
        try:
            return get(base + path, headers)
        except Absent:
            return None

    userdata = maybe(cloud.userdata)
    keys = (maybe(cloud.keys) or b"").decode("utf-8", "replace") if cloud.keys else ""
    details = {file: value for path, file in cloud.details.items() if (value := maybe(path)) is not None}
    return UserData(
        name,
        cloud.decode(userdata) if userdata else None,
        _text(maybe(cloud.hostname)),
        tuple(line.strip() for line in cloud.read_keys(keys) if line.strip()),
        {file: _text(value) for file, value in details.items()},
    )


def _packet(base: str) -> UserData:
    try:
        found = json.loads(get(f"{base}/metadata", {}))
    except ValueError as exc:
        raise Absent("the answer is not JSON") from exc
    if not isinstance(found, dict) or found.get("error") or not found.get("hostname"):
        raise Absent("the answer is no machine's")
    try:
        userdata: bytes | None = get(f"{base}/userdata", {})
    except Absent:
        userdata = None
    if not userdata or userdata.startswith(b"#!ipxe"):
        userdata = None  # a script for the network boot, which has happened
    keys = tuple(key for key in found.get("ssh_keys") or () if isinstance(key, str))
    return UserData("packet", userdata, str(found["hostname"]), keys)


def _scaleway(base: str) -> UserData:
    text = get(f"{base}/conf", {}).decode("utf-8", "replace")
    values = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.MULTILINE))
    if "ID" not in values:
        raise Absent("the answer is no machine's")
    keys = [
        values[name].strip("'") for name in sorted(values) if re.fullmatch(r"SSH_PUBLIC_KEYS_\d+_KEY", name)
    ]
    try:
        userdata: bytes | None = get(f"{base}/user_data/cloud-init", {}, low_port=True)
    except Absent:
        userdata = None
    names = {"ID": "instance_id", "LOCATION_ZONE_ID": "instance_location", "PRIVATE_IP": "private_ip",
             "PUBLIC_IP_ADDRESS": "public_ip"}  # fmt: skip
    details = {file: values[name].strip("'") for name, file in names.items() if name in values}
    return UserData("scaleway", userdata, values.get("HOSTNAME", "").strip("'"), tuple(keys), details)


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace").strip()
