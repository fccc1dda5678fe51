"""Is this document a valid configuration, and if not, what is wrong where?

Each section is checked by its pydantic model; what pydantic says is put into our words, with file, line,
column, dotted key and the nearest valid key. Then `checks` looks at what no single field can know. Nothing
is raised: all problems come back together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from p2p_bootstrap.cloudconfig.nodes import MapNode, Path, dotted, find, locate, locate_key
from p2p_bootstrap.cloudconfig.remote import parse_source, url_of
from p2p_bootstrap.config.fields import Hostname, found, validator_input
from p2p_bootstrap.config.model import MODELS, P2P
from p2p_bootstrap.config.names import (
    BUNDLES,
    CLOUD_INIT_ONLY,
    KUBE_VIP_FIELDS,
    MOVED,
    PASSED_THROUGH,
    SECTIONS,
)
from p2p_bootstrap.stages.configured import Configured, read_steps
from p2p_bootstrap.stages.names import sequence
from p2p_bootstrap.stages.plan import plan
from p2p_network.admission.join_token import JoinToken, is_join_token, parse_join_token
from p2p_network.core.errors import P2PError, Problem, TokenError, nearest
from p2p_network.token import NetworkToken, parse_token

TOP_LEVEL = frozenset((*SECTIONS, *PASSED_THROUGH, *BUNDLES, *CLOUD_INIT_ONLY))
# Values under these keys are never quoted.
_SECRETS = frozenset({"network_token", "join_token", "external_db", "args", "env"})


def problem_at(root: MapNode, path: Path, message: str, hint: str = "", *, key: bool = False) -> Problem:
    """A problem with the value (or the key itself) at `path`."""
    mark = locate_key(root, path) if key else locate(root, path)
    return Problem(mark.file, mark.line, mark.column, dotted(path), message, hint)


def validate_sections(root: MapNode) -> tuple[dict[str, BaseModel], list[Problem]]:
    """Every section's model (of a section with problems: none), and all problems of single fields."""
    problems: list[Problem] = []
    models: dict[str, BaseModel] = {}
    for name, model in MODELS.items():
        node = root.get(name)
        try:
            models[name] = model.model_validate({} if node is None else validator_input(node))
        except ValidationError as exc:
            problems += [_translate(root, name, error) for error in exc.errors(include_url=False)]
    return models, problems


def validate_hostname(root: MapNode) -> tuple[str | None, list[Problem]]:
    """The host name as written, None if there is none."""
    node = root.get("hostname")
    if node is None:
        return None, []
    try:
        return TypeAdapter(Hostname).validate_python(node), []
    except ValidationError as exc:
        return None, [_translate(root, "hostname", error) for error in exc.errors(include_url=False)]


def validate_stages(
    root: MapNode, files: Sequence[str], names: Mapping[str, str]
) -> tuple[Configured, list[Problem], list[Problem]]:
    """Every step of every stage, also those of plain keys, and ``config_url``; problems; remarks."""
    configured = read_steps(root, files, names)
    problems = [problem for problem in configured.problems if problem.key != "hostname"]
    remarks: list[Problem] = []
    if (named := url_of(root)) is not None:
        try:
            parse_source(named[0])
        except P2PError as exc:
            problems.append(problem_at(root, ("config_url",), exc.message, exc.hint))
    for stage in dict.fromkeys(step.stage for step in configured.steps):
        planned = plan(stage, [step for step in configured.steps if step.stage == stage])
        if stage in sequence(stage):
            problems += planned.problems
            remarks += planned.remarks
    return configured, problems, list(dict.fromkeys(remarks))


def validate_tokens(
    root: MapNode, network: str | None, join: str | None
) -> tuple[NetworkToken | None, JoinToken | None, list[Problem]]:
    """The parsed tokens, None for one that is not written. A problem never quotes one."""
    name, token, joining = "network_token", None, None
    if network and join:
        problem = problem_at(
            root,
            ("p2p", "join_token"),
            "there is a network token too",
            "keep one: with the network token this node may admit others, with the join token it may not",
        )
        return None, None, [problem]
    try:
        if join:
            name = "join_token"
            joining = parse_join_token(join)
        elif network and is_join_token(network):
            joining = parse_join_token(network)
        elif network:
            token = parse_token(network)
    except TokenError as exc:
        return None, None, [problem_at(root, ("p2p", name), exc.message, exc.hint)]
    return token, joining, []


def unknown_top_level(root: MapNode) -> Iterator[Problem]:
    """Top-level keys that nobody knows. A bundle may read any block, so with bundles only typos count."""
    bundles = root.get("bundles") is not None or find(root, ("install", "bundles")) is not None
    for name in root.entries:
        if name in TOP_LEVEL:
            continue
        hint = _hint_for_unknown((name,), [*SECTIONS, *PASSED_THROUGH]) or _hint_for_unknown(
            (name,), sorted(BUNDLES | CLOUD_INIT_ONLY)
        )
        if not (bundles and not hint):
            yield problem_at(root, (name,), "unknown key", hint or _list_hint(SECTIONS), key=True)


def bundle_blocks(root: MapNode) -> Iterator[str]:
    """Top-level keys that are taken for the block of a bundle, since nothing else knows them."""
    refused = {problem.key for problem in unknown_top_level(root)}
    return (name for name in root.entries if name not in TOP_LEVEL and name not in refused)


def _translate(root: MapNode, section: str, error: ErrorDetails) -> Problem:
    """One of pydantic's errors in our words."""
    path = (section, *(part for part in error["loc"] if part != "[key]"))
    context: Mapping[str, Any] = error.get("ctx") or {}
    if error["type"] == "extra_forbidden":
        siblings = _keys_of(section, path[1:-1])
        hint = _hint_for_unknown(path, siblings) or _list_hint(siblings)
        return problem_at(root, path, "unknown key", hint, key=True)
    hint = str(context.get("hint", ""))
    node = find(root, path)
    shown = "nothing" if node is None else found(node, secret=not _SECRETS.isdisjoint(path))
    match error["type"]:
        case "model_type" | "dict_type" | "model_attributes_type":
            message = f"expected a map of keys, found {shown}"
            hint = f"write the keys of {dotted(path)} below it, indented"
        case "tuple_type" | "list_type":
            message = f"expected a list, found {shown}"
            hint = "write one value a line, each after a dash"
        case "greater_than_equal":
            message = f"must be at least {context['ge']}, found {shown}"
        case "less_than_equal":
            message = f"must be at most {context['le']}, found {shown}"
        case "missing":
            message = "it has to be there"
        case "too_long":
            message = f"has too many items: {context['actual_length']}, at most {context['max_length']}"
        case "too_short":
            message = f"has too few items: {context['actual_length']}, at least {context['min_length']}"
        case _:
            message = error["msg"]
    return problem_at(root, path, message, hint)


def _hint_for_unknown(path: Path, siblings: list[str]) -> str:
    """What was probably meant: a key that moved, one of that name elsewhere, or one spelled nearly so."""
    key, name = dotted(path), str(path[-1])
    if key in MOVED:
        return f"write {MOVED[key]}"
    if "." in name and name.split(".")[0] in SECTIONS:
        return f"write {' -> '.join(name.split('.'))} as nested maps, one key a line"
    if near := nearest(name, siblings):
        return f"did you mean {near!r}?"
    elsewhere = [known for known in _ALL_KEYS if known.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}? Then it stands under {elsewhere[0].rpartition('.')[0]}"
    return ""


def _list_hint(names: tuple[str, ...] | list[str]) -> str:
    return f"valid keys here: {', '.join(names)}"


def _keys_of(section: str, path: Path) -> list[str]:
    model: type[BaseModel] = MODELS[section]
    for part in path:
        inner = _model_in(model.model_fields[str(part)].annotation)
        if inner is None:
            return []
        model = inner
    names = list(model.model_fields)
    return [*names, *sorted(KUBE_VIP_FIELDS)] if section == "kubevip" else names


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _known_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}.{name}"
        if inner := _model_in(field.annotation):
            yield from _known_keys(inner, f"{prefix}.{name}")


_ALL_KEYS = tuple(_known_keys(P2P, "p2p"))
