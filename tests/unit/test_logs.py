"""Do log lines carry their fields, in both shapes, and no secret?"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from p2p_bootstrap import logs
from p2p_bootstrap.api.events import EventLog, EventLogHandler
from p2p_bootstrap.redaction import MASK, redact
from p2p_network.core import log
from p2p_network.token import NetworkToken, format_token

TOKEN = format_token(NetworkToken(bytes(range(32)), ("192.0.2.1:4701",)))
OURS = log.get("p2p_network.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in logs.OWN_LOGGERS}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, number in levels.items():
        logging.getLogger(name).setLevel(number)


def written(form: logs.Format, level: str = "info", events: EventLog | None = None) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(form, level, also=[EventLogHandler(events)] if events else [], stream=stream)
    return stream


def test_json_is_one_object_a_line_with_the_fields() -> None:
    stream = written("json")
    log.event(OURS, "mesh.joined", reason="a peer answered", peer="P", count=3)
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "mesh.joined",
        "level": "info",
        "reason": "a peer answered",
        "peer": "P",
        "count": 3,
    }


def test_console_is_a_line_for_people_without_colours_on_a_file() -> None:
    stream = written("console")
    log.event(OURS, "mesh.joined", reason="a peer answered", peer="P")
    text = stream.getvalue()
    assert "[info     ] mesh.joined " in text
    assert "reason='a peer answered'" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_libraries_record_and_its_traceback_are_rendered_too(form: logs.Format) -> None:
    stream = written(form)
    try:
        secret = TOKEN  # noqa: F841  # must not be shown as a local variable
        raise ValueError(f"bad token {TOKEN}")
    except ValueError:
        logging.getLogger("some.library").exception("it %s", "failed")
    logging.getLogger("some.library").info("chatter")
    text = stream.getvalue()
    assert "it failed" in text
    assert "some.library" in text
    assert f"ValueError: bad token {MASK}" in text
    assert TOKEN not in text
    assert "chatter" not in text
    if form == "json":
        assert json.loads(text)["logger"] == "some.library"


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_field_cannot_replace_the_event_or_break_the_line(form: logs.Format) -> None:
    stream = written(form)
    OURS.info("a.thing", extra={"fields": {"event": "forged", "level": "forged", "detail": "a\nb"}})
    assert len(stream.getvalue().splitlines()) == 1
    assert "a.thing" in stream.getvalue()
    assert "forged" not in stream.getvalue()


def test_events_are_kept_although_the_log_shows_less() -> None:
    events = EventLog()
    stream = written("console", "error", events)
    log.event(OURS, "mesh.joined", peer="P")
    log.event(OURS, "mesh.detail", level=logging.DEBUG)
    logging.getLogger("p2p_network.test").warning("not an event")
    assert stream.getvalue() == ""
    assert [event["name"] for event in events.since(0)] == ["mesh.joined"]


def test_debug_shows_ours_but_not_the_libraries() -> None:
    stream = written("console", "debug")
    log.event(OURS, "mesh.detail", level=logging.DEBUG)
    logging.getLogger("libp2p").debug("chatter")
    assert "mesh.detail" in stream.getvalue()
    assert "chatter" not in stream.getvalue()


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "K10" + "0a" * 32 + "::server:password",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----",
        "b3RwOgog" * 40 + "==",
    ],
    ids=["token", "k3s", "key", "kairos"],
)
def test_secrets_are_masked_wherever_they_stand(secret: str) -> None:
    assert redact(f"before {secret} after") == f"before {MASK} after"


def test_what_is_no_secret_stays() -> None:
    for text in ("12D3KooW" + "a" * 44, "sha256:" + "ab" * 32, "mesh 0123456789abcdef", "kp2p0 is up", ""):
        assert redact(text) == text
