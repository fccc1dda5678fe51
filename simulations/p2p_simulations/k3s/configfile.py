"""What do k3s's configuration files say? `config.yaml`, then `config.yaml.d/*.yaml` in order of names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2p_simulations.k3s.errors import K3sError

MAX_BYTES = 1 << 20


def read_config(path: str) -> list[tuple[str, Mapping[Any, Any]]]:
    """(path, document) of the main file, if there is one, and of its drop-ins.

    Raises:
        K3sError: a file that is no YAML mapping, or too large.
    """
    if not path:
        return []
    main = Path(path)
    folder = main.with_name(main.name + ".d")
    try:
        dropins = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".yaml", ".yml") and p.is_file())
    except (FileNotFoundError, NotADirectoryError):
        dropins = []
    files = ([main] if main.exists() else []) + dropins
    if not files:
        return []
    import yaml  # late: 1.3 MB that a node without a file need not hold

    documents: list[tuple[str, Mapping[Any, Any]]] = []
    for file in files:
        raw = file.read_bytes()
        if len(raw) > MAX_BYTES:
            raise K3sError(f"{file}: larger than {MAX_BYTES} bytes")
        try:
            document = yaml.safe_load(raw)
        except yaml.YAMLError as exc:
            raise K3sError(f"yaml: {' '.join(str(exc).split())}") from exc
        if document is None:
            continue
        if not isinstance(document, dict):
            raise K3sError("yaml: unmarshal errors: cannot unmarshal into yaml.MapSlice")
        documents.append((str(file), document))
    return documents
