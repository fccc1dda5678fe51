"""Does a test fail with this mutant? A pytest plugin that asks so for every mutant that mutmut has made.

mutmut's own loop starts pytest anew for each of two thousand mutants. Here the tests are collected once and
run once to see which functions they reach; then each mutant gets a fork of this process, in which the tests
that reach its function run, the quickest first, until one fails. Writes RESULTS: a line per mutant.

    MUTANTS=results.txt [MUTANTS_ONLY=names.txt] python -m pytest -p mutants TESTS

in mutmut's folder `mutants`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings
from mutmut.mutation import trampoline
from mutmut.state import state

CPU_S = 20  # of a mutant's tests, at most, which take about two
EXAMPLES = 10
ABOUT = {
    "p2p_network.ledger": ("ledger",),
    "p2p_network.core.decree": ("genesis", "bootstrap"),
    "p2p_roles.genesis": ("genesis", "bootstrap"),
}
"""Module -> words in the names of the files whose tests are about it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mutant must be noticed, not explained: few examples, the same ones each time, not made smaller."""
    for item in items:
        test = getattr(item, "obj", None)
        before = getattr(test, "_hypothesis_internal_use_settings", None)
        if before is not None:
            test._hypothesis_internal_use_settings = settings(
                before,
                max_examples=min(before.max_examples, EXAMPLES),
                phases=(Phase.explicit, Phase.generate),
                database=None,
                derandomize=True,
                deadline=None,
            )


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Instead of running the tests once."""
    chosen = [""]
    trampoline.get_mutant_under_test = lambda: chosen[0]
    reached: dict[str, list[tuple[float, pytest.Item]]] = defaultdict(list)
    for item in session.items:
        chosen[0] = "stats"
        began = time.monotonic()
        if not passes(item):
            raise pytest.UsageError(f"{item.nodeid} fails without any mutant")
        for function in state()._stats:
            reached[function].append((time.monotonic() - began, item))
        state()._stats.clear()
    files = sorted(Path("src").rglob("*.meta"))
    names = [name for file in files for name in json.loads(file.read_text())["exit_code_by_key"]]
    only = os.environ.get("MUTANTS_ONLY", "")
    if only:
        wanted = set(Path(only).read_text().split())
        names = [name for name in names if name in wanted]
    with open(os.environ["MUTANTS"], "w") as results:
        for number, name in enumerate(names, 1):
            words = next(words for module, words in ABOUT.items() if name.startswith(module))
            tests = sorted(
                (took_s, item.nodeid, item)
                for took_s, item in reached[name.rpartition("__mutmut_")[0]]
                if any(word in item.path.name for word in words)
            )
            chosen[0] = name
            results.write(f"{name}: {verdict([item for *_, item in tests])}\n")
            results.flush()
            if number % 100 == 0:
                sys.stderr.write(f"{number} of {len(names)} mutants\n")
    return True


def verdict(items: list[pytest.Item]) -> str:
    """What becomes of the mutant that is chosen."""
    if not items:
        return "no tests"
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        with contextlib.suppress(BaseException):
            os._exit(0 if all(map(passes, items)) else 1)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"
    return "killed" if os.WEXITSTATUS(status) else "survived"


def passes(item: pytest.Item) -> bool:
    """Run one test."""
    return not any(report.failed for report in runtestprotocol(item, nextitem=None, log=False))
