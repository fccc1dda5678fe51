"""js-libp2p from npm, installed once into a cache folder of this machine, never into the tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

JS = Path(__file__).parent / "js"
INSTALL_LIMIT_S = 240


@pytest.fixture(scope="session")
def js_folder() -> Path:
    """A folder with our scripts and node_modules; skips without Node, npm or a registry that answers."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no Node and npm here (Debian: nodejs, npm): js-libp2p can't run")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"js-libp2p wants Node 20 or later, here is {version.strip()}")
    pinned = (JS / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "kairos-p2p-interop" / hashlib.sha256(pinned + version.encode()).hexdigest()[:16]
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(JS / name, folder)
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
        try:
            subprocess.run(
                [npm, "ci", *quiet], cwd=folder, capture_output=True, check=True, timeout=INSTALL_LIMIT_S
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
            words = (exc.stderr or b"").decode(errors="replace").strip().splitlines()
            pytest.skip(f"npm can't install js-libp2p here: {words[-1] if words else exc}")
        (folder / "installed").touch()
    for script in JS.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder
