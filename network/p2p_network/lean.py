"""How does a process of ours start without paying for what it will not use?

Tricks around imports, over when they are done. They save CPU time of every start, and a small or emulated
machine has little of it (together with `host.lean`: more than half of the agent's 4.5 billion instructions):

- `loading` is put around what stays as long as the process. Within it
  - the garbage collector rests: a fifth of the time;
  - a dataclass compiles its methods when they are first called: otherwise each of our 500 has six compiled
    from source at every start, a fifth of the time, and most are never called.
- `without_plugins`: pydantic does not search all installed packages for plugins.
- `without_searches`: no ldconfig is run to find the C library, which is in the process already.
- `hollow`: names of packages that resolve to empty modules, for code that imports what it never touches.
- `absent`: names of packages that can't be imported, for code that then does without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # with its module come temporary files and archives

PLUGINS: Final = "PYDANTIC_DISABLE_PLUGINS"


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import in here what stays as long as the process does.

    The garbage collector need not look at modules, neither now nor later (70 ms at a time, in which nothing
    else happens).
    """
    gc.disable()
    try:
        with late_methods():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def late_methods() -> Iterator[None]:
    """Dataclasses defined in here compile their methods when these are first called.

    Does nothing where the standard library has no such function to stand in for (3.13 compiles all methods of
    a class at once).
    """
    compiled = vars(dataclasses).get("_create_fn")
    if compiled is None:
        yield
        return
    vars(dataclasses)["_create_fn"] = functools.partial(_late, compiled)
    try:
        yield
    finally:
        vars(dataclasses)["_create_fn"] = compiled


def _late(compiled: Callable[..., Any], name: str, *args: Any, **more: Any) -> Callable[..., Any]:
    """A method that replaces itself by the one it stands for, in its class, when it is called."""

    def late(self: Any, *values: Any, **named: Any) -> Any:
        method = compiled(name, *args, **more)
        method.__qualname__ = late.__qualname__
        for owner in type(self).__mro__:
            if vars(owner).get(name) is late:
                setattr(owner, name, method)
        return method(self, *values, **named)

    late.__name__ = name
    return late


@contextlib.contextmanager
def without_plugins() -> Iterator[None]:
    """Models defined in here have no plugins; saves the reading of every installed package's metadata."""
    given = os.environ.get(PLUGINS)
    os.environ[PLUGINS] = "__all__"
    try:
        yield
    finally:
        if given is None:
            del os.environ[PLUGINS]
        else:
            os.environ[PLUGINS] = given


@contextlib.contextmanager
def without_searches() -> Iterator[None]:
    """A library that is searched for in here is not found.

    trio would name its threads with one, and ifaddr then takes the process's own symbols; to find each,
    a shell, ldconfig and a compiler may be run.
    """
    finding = importlib.import_module("ctypes.util")
    found = vars(finding)["find_library"]
    vars(finding)["find_library"] = lambda _: None
    try:
        yield
    finally:
        vars(finding)["find_library"] = found


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """In here these modules can't be imported, unless they are there already."""
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        sys.modules[name] = cast(ModuleType, None)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


class _Empty(type):
    """The class of empty classes: they have whatever is asked of them, and no objects."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{cls.__module__}.{cls.__name__} was imported without its module")


class _Hollow(ModuleType):
    """A module whose every public attribute is an empty class: enough for annotations and base classes."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Empty(name, (Exception,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _HollowFinder:
    """Finds hollow modules by name, and whatever is below them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The empty module of a name that is hollow; None for others."""
        parts = fullname.split(".")
        hollow = any(".".join(parts[:count]) in self._names for count in range(1, len(parts) + 1))
        return ModuleSpec(fullname, cast("Loader", self), is_package=True) if hollow else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextlib.contextmanager
def hollow(*names: str) -> Iterator[None]:
    """In here these modules, and those below them, are imported as empty ones, unless they are there already.

    Afterwards they are gone again: anybody else's import gets the real ones.
    """
    finder = _HollowFinder([name for name in names if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Hollow)]:
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if vars(sys.modules.get(parent, module)).get(child) is module:
                delattr(sys.modules[parent], child)
