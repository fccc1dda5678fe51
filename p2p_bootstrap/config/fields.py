"""Which kinds of values does the model know, and how does a written scalar become one?

The model is fed with `ScalarNode`s, not with what YAML makes of them: a text takes the words as written
(``0123``, ``12:30``, ``no``), a truth value also takes YAML 1.1's yes/no/on/off, a number must be a
number. What does not fit raises an error in words, with a hint; a secret's text is never in it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, ScalarNode, kind
from p2p_bootstrap.config import addresses
from p2p_bootstrap.config.quoting import quoted
from p2p_network.core.errors import nearest
from p2p_network.services import check_name
from p2p_network.subnets import parse_subnet

MAX_SERVERS: Final = 15
MAX_NODES: Final = 200  # a quorum's certificate, 121 bytes a vote, must fit into one ledger entry
MAX_TEXT_CHARS: Final = 32_768
MIN_SILENCE_S: Final = 5.0
MAX_SILENCE_S: Final = 7 * 86400.0
_TRUE: Final = ("true", "yes", "on", "y")
_FALSE: Final = ("false", "no", "off", "n")
_TEMPLATE: Final = "{{"


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """The error of a value, in our words."""
    return PydanticCustomError("config", "{message}", {"message": message, "hint": hint})


def found(value: object, *, secret: bool = False) -> str:
    """What was written, short enough for a message; of a secret only what kind of thing it is."""
    match value:
        case ScalarNode(text=text, plain=plain, is_null=False) if not secret and text:
            return quoted(text) if plain else f"the text {quoted(text)}"
        case ScalarNode() | MapNode() | ListNode():
            return kind(value)
        case dict():
            return "a map"
        case list() | tuple():
            return "a list"
        case _:
            return "a value of another kind"


def _text(value: object, *, secret: bool = False) -> str:
    text = value.text if isinstance(value, ScalarNode) and not value.is_null else value
    if not isinstance(text, str):
        hint = "remove the empty item" if isinstance(value, ScalarNode) else ""
        raise wrong(f"expected a text, found {found(value)}", hint)
    if len(text) > MAX_TEXT_CHARS:
        raise wrong(f"the text has {len(text)} characters, at most {MAX_TEXT_CHARS} are possible")
    if "\0" in text:
        raise wrong("the text contains a zero byte, which no program takes", "remove the \\0")
    return text


def _secret(value: object) -> SecretStr:
    return value if isinstance(value, SecretStr) else SecretStr(_text(value, secret=True))


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, ScalarNode):
        word = value.text.lower()
        if word in _TRUE + _FALSE:
            if value.plain:
                return word in _TRUE
            raise wrong(f"expected true or false, found {found(value)}", "remove the quotes")
    raise wrong(f"expected true or false, found {found(value)}")


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, ScalarNode):
        number = value.value
        if isinstance(number, int) and not isinstance(number, bool):
            return number
        if not value.plain and re.fullmatch(r"[-+]?[0-9]+", value.text):
            raise wrong(f"expected a whole number, found {found(value)}", "remove the quotes")
        if re.fullmatch(r"[-+]?0[0-9]+", value.text):
            raise wrong(f"expected a whole number, found {found(value)}", "remove the zero in front")
    raise wrong(f"expected a whole number, found {found(value)}")


def _silence(value: object) -> float:
    if isinstance(value, float):
        return value
    text = _text(value)
    parts = re.fullmatch(r"([0-9]{1,6})(s|m|h|d)", text)
    if parts is None:
        raise wrong(f"expected a duration, found {found(value)}", "write it as 90s, 5m or 1h")
    seconds = float(parts[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]]
    if not MIN_SILENCE_S <= seconds <= MAX_SILENCE_S:
        raise wrong(f"{quoted(text)} is not between 5s and 7d")
    return seconds


def choice(words: Mapping[str, str]) -> BeforeValidator:
    """A word out of `words` (small or capital letters), turned into what it stands for."""
    accepted = Literal[tuple(words)]  # type: ignore[valid-type]

    def pick(value: object) -> str:
        text = _text(value)
        if text.lower() in words:
            return words[text.lower()]
        names = [word for word in words if word]
        near = nearest(text.lower(), names)
        hint = f"did you mean {near!r}?" if near else ""
        raise wrong(f"expected one of {', '.join(names)}; found {found(value)}", hint)

    return BeforeValidator(pick, json_schema_input_type=accepted)


def _checked(check: Callable[[str], str], hint: str = "") -> AfterValidator:
    def run(text: str) -> str:
        try:
            return check(text)
        except ValueError as exc:
            raise wrong(str(exc), hint) from None

    return AfterValidator(run)


def _pattern(pattern: str, what: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def run(text: str) -> str:
        if not compiled.fullmatch(text):
            raise wrong(f"{quoted(text)} is not {what}")
        return text

    return AfterValidator(run)


def split_target(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``PORT`` (of 127.0.0.1). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = (host.removeprefix("[").removesuffix("]") if colon else "") or "127.0.0.1"
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{quoted(text)} is no target: write HOST:PORT, such as 127.0.0.1:80")
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", host):
        raise ValueError(f"{quoted(host)} is no host")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_target(text: str) -> str:
    """The text, if `split_target` takes it."""
    split_target(text)
    return text


def _hostname(text: str) -> str:
    if _TEMPLATE in text:
        return text  # `{{ trunc 4 .MachineID }}`: rendered by the boot stages, see Config.hostname
    if len(text) > 253 or not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9]{0,62}(?<!-)\.?)*(?<!\.)", text):
        raise wrong(f"{quoted(text)} is not a host name", "it has letters, digits and hyphens")
    return text


def _address_range(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as exc:
        loose = None
        if "has host bits set" in str(exc):
            loose = ipaddress.IPv4Network(text, strict=False)
        hint = f"did you mean {loose}?" if loose else "write it as 10.144.0.0/16"
        raise wrong(f"{quoted(text)} is not an IPv4 network", hint) from None
    if not 8 <= network.prefixlen <= 24:
        raise wrong(f"{network} has a prefix of /{network.prefixlen}; it must be from /8 to /24")
    if not network.is_private:
        raise wrong(f"{network} is not a private network", "choose one inside 10.0.0.0/8 or 172.16.0.0/12")
    return str(network)


_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DNS_NAME: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_PREFIX: Final = re.compile(rf"(?=.{{1,253}}$){_DNS_NAME}(\.{_DNS_NAME})*")
_OWN_PREFIX: Final = re.compile(r"(.+\.)?(node|kubelet)\.kubernetes\.io")
_KUBERNETES: Final = re.compile(r"(.+\.)?(kubernetes|k8s)\.io")
_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def _is_label_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return bool(_LABEL_NAME.fullmatch(name) and (not slash or _LABEL_PREFIX.fullmatch(prefix)))


def _node_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _is_label_key(key):
            raise wrong(f"{quoted(key)} is no name of a label", "[PREFIX/]NAME, e.g. example.com/disk")
        if value and not _LABEL_NAME.fullmatch(value):
            raise wrong(
                f"{quoted(value)} is no value of a label", "at most 63 letters, digits, '-', '_', '.'"
            )
        prefix = key.rpartition("/")[0]
        if _KUBERNETES.fullmatch(prefix) and not _OWN_PREFIX.fullmatch(prefix):
            hint = "region and zone come from p2p.region and p2p.zone; take a prefix of your own for others"
            raise wrong(f"{quoted(key)} belongs to Kubernetes: a node may not give it to itself", hint)
    return labels


def _taint(value: object) -> str:
    text = _text(value)
    rest, _, effect = text.rpartition(":")
    key, _, word = rest.partition("=")
    if effect not in _EFFECTS or not _is_label_key(key) or (word and not _LABEL_NAME.fullmatch(word)):
        raise wrong(f"{quoted(text)} is no taint", f"KEY[=VALUE]:EFFECT; effects: {', '.join(_EFFECTS)}")
    return text


def _env_names(env: dict[str, str]) -> dict[str, str]:
    for name in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise wrong(f"{quoted(name)} is not the name of an environment variable")
    return env


def _not_empty(items: tuple[str, ...]) -> tuple[str, ...]:
    if not items:
        raise wrong("the list is empty", "remove the key to listen on the default addresses")
    return items


_CRON_FIELDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def _schedule(text: str) -> str:
    """Five fields of numbers, ranges, lists and steps; or "off"."""
    if text in ("", "off"):
        return ""
    words = text.split()
    for word, (low, high) in zip(words, _CRON_FIELDS, strict=False):
        for part in word.split(","):
            matched = re.fullmatch(r"(\*|[0-9]{1,2}(-[0-9]{1,2})?)(/[1-9][0-9]?)?", part)
            if not matched or any(not low <= int(n) <= high for n in re.findall(r"[0-9]+", matched[1])):
                raise wrong(f"{quoted(part)} is no field of a schedule from {low} to {high}")
    if len(words) != len(_CRON_FIELDS):
        hint = "minute hour day month weekday, as 0 */12 * * *; off for none"
        raise wrong(f"{quoted(text)} is no schedule of five fields", hint)
    return " ".join(words)


Text = Annotated[str, BeforeValidator(_text)]
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
Flag = Annotated[bool, BeforeValidator(_flag)]
MoreServers = Annotated[int, Field(ge=0, le=MAX_SERVERS - 1), BeforeValidator(_whole)]
ServerCount = Annotated[int, Field(ge=1, le=MAX_SERVERS), BeforeValidator(_whole)]
NodeCount = Annotated[int, Field(ge=1, le=MAX_NODES), BeforeValidator(_whole)]
Seconds = Annotated[int, Field(ge=0, le=86400), BeforeValidator(_whole)]
Mtu = Annotated[int, Field(ge=1280, le=9000), BeforeValidator(_whole)]
Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_whole)]
Env = Annotated[dict[str, Text], AfterValidator(_env_names)]
NodeLabels = Annotated[dict[str, Text], Field(max_length=64), AfterValidator(_node_labels)]
Taint = Annotated[str, BeforeValidator(_taint)]
Label = Annotated[
    Text,
    _pattern(
        r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?",
        "a label: at most 63 letters, digits, '-', '_', '.'; at both ends a letter or digit",
    ),
]
NetworkId = Annotated[
    Text, _pattern(r"[^\x00-\x20\x7f]{1,128}", "a network id: at most 128 characters, no spaces")
]
Interface = Annotated[
    Text,
    _pattern(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,15}", "a device name: at most 15 letters, digits or -_."),
]
Hostname = Annotated[Text, AfterValidator(_hostname)]
ServiceName = Annotated[Text, _checked(check_name)]
Target = Annotated[Text, _checked(check_target)]
VpnMode = Annotated[
    Literal["auto", "tun", "userspace"],
    choice({"auto": "auto", "tun": "tun", "userspace": "userspace"}),
]
Transport = Annotated[Literal["tcp", "udp"], choice({"tcp": "tcp", "udp": "udp"})]
Subnet = Annotated[Text, _checked(lambda text: str(parse_subnet(text)))]
AddressRange = Annotated[Text, AfterValidator(_address_range)]
Listen = Annotated[Text, _checked(addresses.check_listen)]
ListenList = Annotated[tuple[Listen, ...], AfterValidator(_not_empty)]
Bootstrap = Annotated[Text, _checked(addresses.check_bootstrap)]
Entrance = Annotated[Text, _checked(addresses.check_entrance)]

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    choice(
        {
            "debug": "debug",
            "info": "info",
            "warn": "warning",
            "warning": "warning",
            "error": "error",
            "dpanic": "error",
            "panic": "error",
            "fatal": "error",
        }
    ),
]
Role = Annotated[
    Literal["auto", "server", "agent"],
    choice(
        {
            "": "auto",
            "none": "auto",
            "auto": "auto",
            "server": "server",
            "master": "server",
            "agent": "agent",
            "worker": "agent",
        }
    ),
]
Speed = Annotated[
    Literal["auto", "lan", "wan", "slow"],
    choice({"auto": "auto", "lan": "lan", "wan": "wan", "slow": "slow"}),
]
Preference = Annotated[
    Literal["server", "agent"],
    choice({"server": "server", "master": "server", "agent": "agent", "worker": "agent"}),
]
Silence = Annotated[float, BeforeValidator(_silence, json_schema_input_type=str)]
PlacementKind = Annotated[Literal["spread", "pack"], choice({"spread": "spread", "pack": "pack"})]
Health = Annotated[
    Literal["mesh", "role", "ready", "never"],
    choice({"mesh": "mesh", "role": "role", "ready": "ready", "never": "never"}),
]
Carrier = Annotated[Literal["auto", "tcp", "udp"], choice({"auto": "auto", "tcp": "tcp", "udp": "udp"})]
RecoveryKind = Annotated[
    Literal["manual", "automatic"], choice({"manual": "manual", "automatic": "automatic"})
]
SnapshotCount = Annotated[int, Field(ge=1, le=100), BeforeValidator(_whole)]
Mebibytes = Annotated[int, Field(ge=1, le=1 << 20), BeforeValidator(_whole)]
Schedule = Annotated[Text, AfterValidator(_schedule)]
Scope = Annotated[Literal["mesh", "region"], choice({"mesh": "mesh", "region": "region"})]


def validator_input(value: Any) -> Any:
    """A node as the model takes it: maps and lists as Python's, scalars as nodes, null keys left out."""
    match value:
        case MapNode():
            return {
                key: validator_input(entry.value)
                for key, entry in value.entries.items()
                if value.get(key) is not None
            }
        case ListNode():
            return [validator_input(item) for item in value.items]
        case _:
            return value
