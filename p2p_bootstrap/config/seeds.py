"""Whom does a node on an air-gapped site dial first? A file of addresses, carried there on a stick.

One address a line, as in `p2p.bootstrap`: HOST:PORT or a multiaddress; what follows a ``#`` is a remark.
The file may be changed at any time and is read at each start. A line that is no address is told and passed
over: a site must not stay dark for a slip of the pen.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from p2p_bootstrap.config import addresses
from p2p_network.core import log

logger = log.get(__name__)

MAX_SEED_FILE_BYTES: Final = 64 * 1024
MAX_SEEDS: Final = 256


def read_seeds(path: str) -> tuple[str, ...]:
    """The addresses in a seed file, each once; none if it can't be read, which is told."""
    if not path:
        return ()
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_SEED_FILE_BYTES).decode("utf-8", errors="replace")
    except OSError as exc:
        log.event(
            logger,
            "config.no_seed_file",
            logging.WARNING,
            path=path,
            error=exc.strerror or str(exc),
            hint="write one address a line into it: HOST:PORT",
        )
        return ()
    found: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            addresses.check_bootstrap(word)
        except ValueError as exc:
            where = f"{Path(path).name}:{number}"
            log.event(logger, "config.bad_seed", logging.WARNING, path=where, error=str(exc)[:200])
            continue
        found[word] = None
    return tuple(found)[:MAX_SEEDS]
