"""Do data sources and images find what their services hold? Against fakes on loopback."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from p2p_bootstrap.cloudconfig.fetching import fetch_http
from p2p_bootstrap.stages import oci
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.media import label_of
from p2p_bootstrap.stages.metadata import CLOUDS, UserData, ask
from p2p_bootstrap.stages.model import AbsolutePath, DataSource, UnpackImage
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.steps.images import UnpackImageFiles
from p2p_bootstrap.stages.steps.userdata import FetchUserData
from p2p_bootstrap.stages.system import Ended
from p2p_network.core.errors import ConfigError, P2PError

CONFIG = b"#cloud-config\nhostname: from-cloud\n"
KEY = "ssh-ed25519 AAAAC3Nza me"
Answer = Callable[[BaseHTTPRequestHandler], "bytes | int"]


class Fake:
    """A web server: path -> content, or a function of the request that gives content or a status."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Answer] = {}
        self.asked: list[tuple[str, str, Mapping[str, str], int]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.asked.append((self.command, self.path, dict(self.headers), self.client_address[1]))
                found = fake.pages.get(f"{self.command} {self.path}", fake.pages.get(self.path, 404))
                result = found(self) if callable(found) else found
                if isinstance(result, int):
                    self.send_response(result)
                    if result == 401:
                        realm = f"http://127.0.0.1:{fake.port}/token"
                        self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="s",scope="r"')
                    if result == 302:
                        self.send_header("Location", "http://127.0.0.1:1/")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(result)))
                self.end_headers()
                self.wfile.write(result)

            do_PUT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.end()


class Quiet:
    """A system that has no programs, but mounts media from a folder."""

    def __init__(self, root: Path, medium: Path | None = None) -> None:
        self._root, self._medium = root, medium
        self.ran: list[Sequence[str]] = []
        self.answers: dict[str, Ended] = {}
        self.programs: set[str] = set()

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
        self.ran.append(list(argv))
        if argv[0] == "mount" and self._medium:
            shutil.copytree(self._medium, self._root / argv[-1].lstrip("/"), dirs_exist_ok=True)
        if argv[0] == "umount":
            shutil.rmtree(self._root / argv[-1].lstrip("/"))
        return self.answers.get(argv[-1], Ended(0))

    def has(self, program: str) -> bool:
        return program in self.programs

    def set_hostname(self, name: str) -> None:
        pass

    def fetch(self, address: str, limit_bytes: int, timeout_s: float) -> bytes:
        return fetch_http(address, limit_bytes, timeout_s=timeout_s)


def run(folder: Path, spec: DataSource, system: Quiet | None = None, base: str = "") -> Root:
    (folder / "etc").mkdir(exist_ok=True)
    (folder / "etc/passwd").write_text(f"root:x:{os.getuid()}:{os.getgid()}:root:/root:/bin/sh\n")
    root = Root(folder)
    context = Context(root, system or Quiet(folder), Facts(arch="amd64"), metadata_base=base)
    FetchUserData(spec).execute(context)
    FetchUserData(spec).execute(context)  # twice is once
    return root


AZURE = "?api-version=2021-01-01&format=text"
SERVICES: dict[str, dict[str, bytes]] = {
    "aws": {
        "/latest/meta-data/hostname": b"from-meta",
        "/latest/meta-data/instance-id": b"i-1",
        "/latest/meta-data/public-keys/0/openssh-key": KEY.encode(),
        "/latest/user-data": CONFIG,
    },
    "openstack": {
        "/openstack": b"latest",
        "/latest/meta-data/hostname": b"from-meta",
        "/latest/meta-data/public-keys/0/openssh-key": KEY.encode(),
        "/openstack/latest/user_data": CONFIG,
    },
    "azure": {
        f"/metadata/instance/compute/vmId{AZURE}": b"id",
        f"/metadata/instance/compute/name{AZURE}": b"from-meta",
        f"/metadata/instance/compute/publicKeys/0/keyData{AZURE}": KEY.encode(),
        f"/metadata/instance/compute/userData{AZURE}": base64.encodebytes(CONFIG),
    },
    "gcp": {
        "/computeMetadata/v1/instance/hostname": b"from-meta",
        "/computeMetadata/v1/project/attributes/ssh-keys": f"me:{KEY}\n".encode(),
        "/computeMetadata/v1/instance/attributes/user-data": CONFIG,
    },
    "hetzner": {
        "/hetzner/v1/metadata/instance-id": b"7",
        "/hetzner/v1/metadata/hostname": b"from-meta",
        "/hetzner/v1/metadata/public-keys": json.dumps([KEY]).encode(),
        "/hetzner/v1/userdata": CONFIG,
    },
    "digitalocean": {
        "/metadata/v1/id": b"7",
        "/metadata/v1/hostname": b"from-meta",
        "/metadata/v1/public-keys": KEY.encode(),
        "/metadata/v1/user-data": CONFIG,
    },
    "vultr": {
        "/v1/instanceid": b"7",
        "/v1/hostname": b"from-meta",
        "/v1/public-keys": KEY.encode(),
        "/user-data/user-data": CONFIG,
    },
    "packet": {
        "/metadata": json.dumps({"hostname": "from-meta", "ssh_keys": [KEY]}).encode(),
        "/userdata": CONFIG,
    },
    "scaleway": {
        "/conf": f"ID='7'\nHOSTNAME='from-meta'\nSSH_PUBLIC_KEYS=1\nSSH_PUBLIC_KEYS_0_KEY='{KEY}'\n".encode(),
        "/user_data/cloud-init": CONFIG,
    },
}
HEADERS = {"azure": ("Metadata", "true"), "gcp": ("Metadata-Flavor", "Google")}


@pytest.mark.parametrize("provider", SERVICES)
def test_each_cloud_s_interface(provider: str, fake: Fake, tmp_path: Path) -> None:
    if provider == "scaleway" and os.geteuid() != 0:
        pytest.skip("needs root: scaleway wants a port below 1024")
    fake.pages.update(SERVICES[provider])
    root = run(tmp_path, DataSource((provider,), path="/oem"), base=fake.base)  # type: ignore[arg-type]
    assert root.read("/oem/userdata.yaml") == CONFIG
    assert root.read("/oem/userdata") == CONFIG
    for name in ("oem/userdata", "oem/userdata.yaml", "run/config/ssh/authorized_keys"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    assert root.text("/etc/hostname") == "from-meta\n"
    assert root.text("/root/.ssh/authorized_keys") == KEY + "\n"
    if provider in HEADERS:
        name, value = HEADERS[provider]
        assert all(headers.get(name) == value for _, _, headers, _ in fake.asked)
    if provider == "scaleway":
        assert all(port < 1024 for _, path, _, port in fake.asked if path.startswith("/user_data"))


def test_every_cloud_is_tested() -> None:
    assert set(SERVICES) == {*CLOUDS, "packet", "scaleway"}


def test_aws_with_session_tokens(fake: Fake) -> None:
    def guarded(content: bytes) -> Answer:
        return lambda request: content if request.headers.get("X-aws-ec2-metadata-token") == "T" else 401

    fake.pages.update({path: guarded(content) for path, content in SERVICES["aws"].items()})
    fake.pages["PUT /latest/api/token"] = b"T"
    assert ask("aws", fake.base) == UserData("aws", CONFIG, "from-meta", (KEY,), {"instance_id": "i-1"})


def test_nobody_answers(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(P2PError, match="no user data was found") as caught:
        run(tmp_path, DataSource(("aws", "gcp", "cdrom", "file"), path="/none"), base=fake.base)
    for name in ("aws", "gcp", "cdrom", "file"):
        assert f"{name}: " in caught.value.message


def test_no_user_data_still_gives_name_and_keys(fake: Fake, tmp_path: Path) -> None:
    fake.pages["/metadata"] = SERVICES["packet"]["/metadata"]
    fake.pages["/userdata"] = b"#!ipxe\nboot"
    root = run(tmp_path, DataSource(("packet",)), base=fake.base)
    assert root.read("/run/config/userdata") is None
    assert root.text("/run/config/hostname") == "from-meta"


def test_user_data_in_its_wrappings(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    mime = (
        b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=B\n\n--B\n"
        b"Content-Type: text/x-shellscript\n\n"
        b"#!/bin/sh\n\n--B\nContent-Type: text/cloud-config\n\n#cloud-config\na: 1\n--B--\n"
    )
    for data in (gzip.compress(b"#cloud-config\na: 1\n"), mime, b"stages:\n  boot: []\n"):
        (tmp_path / "u").write_bytes(data)
        root = run(tmp_path, DataSource(("file",), path="/u"))
        text = root.text("/run/config/userdata.yaml")
        assert text.startswith("#cloud-config\n")
    (tmp_path / "u").write_bytes(b"#cloud-config\na: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        run(tmp_path, DataSource(("file",), path="/u"))


def test_a_script_runs(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "u").write_bytes(b"#!/bin/sh\necho hi\n")
    system = Quiet(tmp_path)
    root = run(tmp_path, DataSource(("file",), path="/u"), system)
    assert system.ran == [["/run/config/userdata"]] * 2
    assert stat.S_IMODE((tmp_path / "run/config/userdata").stat().st_mode) == 0o700
    assert root.read("/run/config/userdata.yaml") is None


def test_vmware_guestinfo(tmp_path: Path) -> None:
    system = Quiet(tmp_path)
    system.programs = {"vmtoolsd"}
    system.answers = {
        "info-get guestinfo.userdata": Ended(0, base64.b64encode(gzip.compress(CONFIG)).decode() + "\n"),
        "info-get guestinfo.userdata.encoding": Ended(0, "gzip+base64\n"),
    }
    assert run(tmp_path, DataSource(("vmware",)), system).read("/run/config/userdata.yaml") == CONFIG


@pytest.mark.parametrize(
    ("provider", "label", "file", "meta", "metadata"),
    [
        ("cdrom", "cidata", "user-data", "meta-data", "instance-id: x\nlocal-hostname: from-disc\n"),
        ("nocloud", "CIDATA", "user-data", "meta-data", "hostname: from-disc\n"),
        ("config-drive", "config-2", "openstack/latest/user_data", "openstack/latest/meta_data.json",
         '{"hostname": "from-disc"}'),
    ],
)  # fmt: skip
def test_media_are_found_by_their_label(
    tmp_path: Path, provider: str, label: str, file: str, meta: str, metadata: str
) -> None:
    medium, folder = tmp_path / "medium", tmp_path / "root"
    for name, data in ((file, CONFIG), (meta, metadata.encode())):
        (medium / name).parent.mkdir(parents=True, exist_ok=True)
        (medium / name).write_bytes(data)
    for device, found in (("sda", "other"), ("vdb", label), ("loop0", label)):
        (folder / "sys/class/block" / device).mkdir(parents=True)
        (folder / "dev").mkdir(exist_ok=True)
        (folder / "dev" / device).write_bytes(iso(found))
    system = Quiet(folder, medium)
    root = run(folder, DataSource((provider,)), system)  # type: ignore[arg-type]
    assert root.read("/run/config/userdata.yaml") == CONFIG
    assert root.text("/etc/hostname") == "from-disc\n"
    mounted = [argv for argv in system.ran if argv[0] == "mount"]
    assert all("ro,nodev,nosuid,noexec" in argv and "/dev/vdb" in argv for argv in mounted)
    assert [argv[0] for argv in system.ran] == ["mount", "umount"] * 2


def test_a_seed_folder_counts_as_a_medium(tmp_path: Path) -> None:
    seed = tmp_path / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    (seed / "user-data").write_bytes(CONFIG)
    system = Quiet(tmp_path)
    assert run(tmp_path, DataSource(("nocloud",)), system).read("/run/config/userdata.yaml") == CONFIG
    assert system.ran == []


def iso(label: str) -> bytes:
    start = bytearray(36 * 1024)
    start[32769:32774] = b"CD001"
    start[32808:32840] = label.encode().ljust(32)
    return bytes(start)


def test_labels_of_file_systems(tmp_path: Path) -> None:
    assert label_of(iso("cidata")) == "cidata"
    assert label_of(b"") == label_of(bytes(40000)) == ""
    for program, argv in (("mkfs.ext4", ["-q", "-L", "cidata"]), ("mkfs.vfat", ["-n", "CIDATA"])):
        if shutil.which(program):
            image = tmp_path / program
            image.write_bytes(bytes(2 * 1024 * 1024))
            subprocess.run([program, *argv, str(image)], check=True, capture_output=True)
            assert label_of(image.read_bytes()[: 36 * 1024]).lower() == "cidata"


# --- unpack_images ---


def layer(**files: bytes | str | None) -> bytes:
    """A gzipped archive: content, a link (str), or a whiteout (None)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            path = name.replace("__", "/")
            info = tarfile.TarInfo(path)
            info.mode = 0o755
            info.uid, info.gid = os.getuid(), os.getgid()
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                if content is None:
                    info.name = f"{path.rpartition('/')[0]}/.wh.{path.rpartition('/')[2]}"
                data = content or b""
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def serve(fake: Fake, *layers: bytes) -> str:
    """A registry with one image; returns its reference."""

    def blob(data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        fake.pages[f"/v2/team/app/blobs/{digest}"] = guarded(data)
        return digest

    def guarded(data: bytes) -> Answer:
        return lambda request: data if request.headers.get("Authorization") == "Bearer T" else 401

    manifest = json.dumps({"layers": [{"digest": blob(data)} for data in layers]}).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    platforms = [{"digest": "sha256:0", "platform": {"os": "linux", "architecture": "arm64"}},
                 {"digest": digest, "platform": {"os": "linux", "architecture": "amd64"}}]  # fmt: skip
    fake.pages[f"/v2/team/app/manifests/{digest}"] = guarded(manifest)
    fake.pages["/v2/team/app/manifests/1.0"] = guarded(json.dumps({"manifests": platforms}).encode())
    fake.pages["/token?service=s&scope=r"] = json.dumps({"token": "T"}).encode()
    return f"127.0.0.1:{fake.port}/team/app:1.0"


def unpack(folder: Path, source: str, platform: str = "") -> None:
    context = Context(Root(folder), Quiet(folder), Facts(arch="amd64"))
    UnpackImageFiles(UnpackImage(source, AbsolutePath("/usr/local/app"), platform)).execute(context)


def test_an_image_is_unpacked_layer_by_layer(fake: Fake, tmp_path: Path) -> None:
    source = serve(
        fake,
        layer(bin__tool=b"one", etc__old=b"x", etc__keep=b"k", link="/bin/tool"),
        layer(bin__tool=b"two", etc__old=None),
    )
    unpack(tmp_path, source)
    target = tmp_path / "usr/local/app"
    assert (target / "bin/tool").read_bytes() == b"two"
    assert stat.S_IMODE((target / "bin/tool").stat().st_mode) == 0o755
    assert not (target / "etc/old").exists()
    assert (target / "etc/keep").read_bytes() == b"k"
    assert os.readlink(target / "link") == "/bin/tool"
    fake.asked.clear()
    unpack(tmp_path, source)
    assert not any("blobs" in path for _, path, _, _ in fake.asked), (
        "a second boot asks for the manifest only"
    )
    with pytest.raises(P2PError, match="no image for linux/riscv64"):
        unpack(tmp_path, source, "linux/riscv64")


@pytest.mark.parametrize("evil", ["escape", "absolute", "through a link", "hard link", "whiteout"])
def test_an_image_cannot_leave_its_folder(fake: Fake, tmp_path: Path, evil: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        name = {"escape": "../../../victim", "absolute": str(victim), "through a link": "l/victim",
                "hard link": "h", "whiteout": "../../../.wh.victim"}[evil]  # fmt: skip
        if evil == "through a link":
            link = tarfile.TarInfo("l")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            archive.addfile(link)
        info = tarfile.TarInfo(name)
        info.uid, info.gid = os.getuid(), os.getgid()
        if evil == "hard link":
            info.type, info.linkname = tarfile.LNKTYPE, str(victim)
        archive.addfile(info, io.BytesIO(b""))
    with contextlib.suppress(P2PError):  # refused; an absolute name may also be taken as one of the folder's
        unpack(tmp_path, serve(fake, out.getvalue()))
    assert victim.read_text() == "safe"
    assert victim.stat().st_nlink == 1


def test_a_registry_that_lies(fake: Fake, tmp_path: Path) -> None:
    source = serve(fake, layer(a=b"1"))
    blob = next(path for path in fake.pages if "/blobs/" in path)
    fake.pages[blob] = layer(a=b"2")
    with pytest.raises(P2PError, match="sent something else"):
        unpack(tmp_path, source)
    with pytest.raises(P2PError, match="answers 404"):
        unpack(tmp_path, source.replace("app", "nothing"))


def test_references_of_images() -> None:
    for text, base, what in (
        ("quay.io/kairos/x:v1", "https://quay.io/v2/kairos/x", "v1"),
        ("rancher/k3s", "https://registry-1.docker.io/v2/rancher/k3s", "latest"),
        ("busybox:1", "https://registry-1.docker.io/v2/library/busybox", "1"),
        ("localhost:5000/a@sha256:" + "0" * 64, "http://localhost:5000/v2/a", "sha256:" + "0" * 64),
    ):
        reference = oci.parse_reference(text)
        assert (reference.base, reference.what) == (base, what)
    with pytest.raises(P2PError):
        oci.parse_reference("a b")


def test_fetching_over_http_fails_loudly(fake: Fake) -> None:
    fake.pages["/a"] = b"x" * 100
    assert fetch_http(f"{fake.base}/a", 10) == b"x" * 11, "one more than the limit says: too much"
    fake.pages["/b?secret=1"] = lambda request: 302
    for path, complaint in (("/missing", "answers 404"), ("/b", "can't be reached")):
        with pytest.raises(P2PError, match=complaint):
            fetch_http(f"{fake.base}{path}?secret=1", 10, timeout_s=2)
    with pytest.raises(P2PError) as caught:
        fetch_http(f"http://user:pass@127.0.0.1:{fake.port}/missing?token=hush", 10)
    assert "hush" not in str(caught.value)
    assert "pass" not in str(caught.value)
