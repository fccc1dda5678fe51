"""Do the verbs of token and config do what they say, and can a person act on every complaint?"""

# ruff: noqa: E501 - tables of cases read better with a case a line

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from p2p_bootstrap.cli.main import main
from p2p_network.token import NetworkToken, format_token, parse_token

DATA = Path(__file__).resolve().parents[1] / "data" / "cloudconfigs"
TOKEN = format_token(NetworkToken(bytes(range(32)), ("192.0.2.1:4701",), dht=True, mdns=False))
GOOD = f"#cloud-config\np2p:\n  network_token: {TOKEN}\n  servers: 3\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process; stdin is what is passed, never a terminal."""

    def call(*argv: str | Path, stdin: str | bytes = b"") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


# --- token generate ---


def test_generate_prints_one_token_and_nothing_else(run: Run) -> None:
    one, two = run("token", "generate"), run("token", "generate")
    assert one.code == 0
    assert one.err == ""
    assert one.out.count("\n") == 1
    token = parse_token(one.out)
    assert (token.bootstrap, token.dht, token.mdns) == ((), True, True)
    assert one.out != two.out


def test_generate_with_everything(run: Run) -> None:
    done = run(
        "token", "generate", "--bootstrap", "192.0.2.1:4701", "--bootstrap", "[2001:db8::1]:4701",
        "--bootstrap", "192.0.2.1:4701", "--no-dht", "--no-mdns",
    )  # fmt: skip
    token = parse_token(done.out)
    assert token.bootstrap == ("192.0.2.1:4701", "[2001:db8::1]:4701")
    assert (token.dht, token.mdns) == (False, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bootstrap", "192.0.2.1"), "has no port"),
        (("--bootstrap", "2001:db8::1:4701"), "needs brackets"),
        (("--no-dht", "--no-mdns"), "no node would find another"),
        (
            tuple(w for i in range(40) for w in ("--bootstrap", f"h{i}:1")),
            "at most 32",
        ),
    ],
)
def test_generate_refuses(run: Run, options: tuple[str, ...], words: str) -> None:
    done = run("token", "generate", *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_generate_warns_of_a_token_that_finds_nobody_by_itself(run: Run) -> None:
    done = run("token", "generate", "--no-mdns")
    assert done.code == 0
    assert "p2p.bootstrap" in done.err
    assert parse_token(done.out).dht


# --- token inspect, token show ---


def test_inspect_shows_no_secret(run: Run, token_file: Path) -> None:
    for done in (
        run("token", "inspect", token_file),
        run("token", "inspect", stdin=TOKEN),
        run("token", "inspect", "-", stdin=TOKEN),
    ):
        assert done.code == 0
        assert TOKEN not in done.out + done.err
        assert "192.0.2.1:4701" in done.out
        assert parse_token(TOKEN).fingerprint in done.out


def test_inspect_for_programs(run: Run, token_file: Path) -> None:
    document = json.loads(run("token", "inspect", token_file, "-o", "json").out)
    assert document == yaml.safe_load(run("token", "inspect", token_file, "-o", "yaml").out)
    assert document["bootstrap"] == ["192.0.2.1:4701"]
    assert (document["dht"], document["mdns"], document["network_id"]) == (True, False, "kairos")
    assert "token" not in document
    assert run("token", "inspect", token_file, "-o", "name").out == document["fingerprint"] + "\n"
    assert json.loads(run("token", "inspect", token_file, "--reveal", "-o", "json").out)["token"] == TOKEN


def test_inspect_reads_a_token_out_of_a_cloud_config(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + "  network_id: dev\n")
    for done in (
        run("token", "inspect", file, "-o", "json"),
        run("token", "inspect", "-o", "json", stdin=file.read_bytes()),
    ):
        document = json.loads(done.out)
        assert document["fingerprint"] == parse_token(TOKEN).fingerprint
        assert document["network_id"] == "dev"
    assert TOKEN in run("token", "inspect", file, "--reveal").out
    assert "Kairos" in run("token", "inspect", DATA / "kairos-worker.yaml").out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOKEN[:-6], "cut or mistyped"),
        (TOKEN[:20] + "x" + TOKEN[21:], "cut or mistyped"),
        (TOKEN.replace("kp2p1", "kp2p9"), "format version 9"),
        ("", "is empty"),
        ("hello", "no network token"),
        (b"\xff\xfe\x00\x80", "no network token"),
        ("#cloud-config\np2p: {}\n", "has no p2p.network_token"),
        ("#cloud-config\np2p: {role: x}\n", "expected one of"),
        ("# cloud-config\np2p: {}\n", "without a space"),
        (b"x" * 2_000_000, "over 1 MiB"),
    ],
)
def test_a_bad_token(run: Run, text: str | bytes, words: str) -> None:
    for verb in ("inspect", "show"):
        done = run("token", verb, stdin=text)
        assert done.code == 1
        assert done.out == ""
        assert words in done.err
        assert TOKEN[6:18] not in done.err


def test_a_token_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    done = run("token", "inspect", tmp_path / "nope")
    assert done.code == 1
    assert "No such file" in done.err
    assert "hint: check the path" in done.err


def test_show_prints_the_token_and_as_a_qr_code(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD)
    assert run("token", "show", file).out == TOKEN + "\n"
    done = run("token", "show", "--qr", file)
    assert done.code == 0
    assert TOKEN not in done.out
    lines = done.out.rstrip("\n").split("\n")
    assert len({len(line) for line in lines}) == 1, "a square"
    assert set("█▀▄ ") >= set("".join(lines))


def test_a_token_too_long_for_a_qr_code(run: Run) -> None:
    long = format_token(NetworkToken(bytes(32), tuple(f"{i}.{'x' * 200}.example:1" for i in range(20))))
    done = run("token", "show", "--qr", stdin=long)
    assert done.code == 1
    assert "more than a QR code holds" in done.err


# --- config validate ---


@pytest.mark.parametrize("name", ["kairos-ha-kubevip.yaml", "kairos-worker.yaml", "single-node.yaml"])
def test_kairos_files_are_valid(run: Run, name: str) -> None:
    done = run("config", "validate", DATA / name)
    assert done.code == 0, done
    assert "valid: " in done.out
    assert done.err == ""


def test_validate_says_what_a_node_would_do(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + "  replace_after: 10m\n")
    done = run("config", "validate", file)
    assert done.code == 0
    assert f"{file}:5:3: p2p.replace_after: has no effect by itself" in done.out
    assert "3 servers of at least 3 nodes" in done.out
    assert TOKEN not in done.out


def test_validate_for_programs(run: Run) -> None:
    good = json.loads(run("config", "validate", "-", "-o", "json", stdin=GOOD).out)
    assert good == {"valid": True, "files": ["stdin"], "problems": [], "notes": []}
    done = run("config", "validate", "-", "-o", "json", stdin=GOOD + "  servrs: 1\n")
    assert done.code == 1
    (problem,) = json.loads(done.out)["problems"]
    assert problem == {
        "file": "stdin", "line": 5, "column": 3, "key": "p2p.servrs", "message": "unknown key",
        "hint": "did you mean 'servers'?",
    }  # fmt: skip


BOMB = "#cloud-config\nenv:\n  a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"  a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD.replace(TOKEN, TOKEN[:-4]), "stdin:3:18: p2p.network_token: the network token is cut or mistyped"),
        (GOOD.replace("kp2p1", "kp2p2"), "stdin:3:18: p2p.network_token: the network token has format version 2"),
        (GOOD.replace("3\n", "two\n"), "stdin:4:12: p2p.servers: expected a whole number, found 'two'"),
        (GOOD + "  minimum_node: 3\n", "stdin:5:3: p2p.minimum_node: unknown key (did you mean 'minimum_nodes'?)"),
        (GOOD + "  servers: 5\n", "stdin:5:3: p2p.servers: this key stands here a second time; the first is on line 4"),
        (GOOD.removeprefix("#cloud-config\n"), "stdin:1:1: the first line is no cloud-config header"),
        (GOOD + "\tdns: true\n", "stdin:5:1: a tab stands where YAML allows only spaces"),
        (GOOD + "#" * 10_000_000, "the file has"),
        (BOMB, "YAML bomb"),
        (GOOD.encode() + b"\xff", "stdin:5:1: byte 0xff is not valid UTF-8"),
        (b"\x7fELF\0", "stdin:1:5: this is binary data"),
    ],
    ids=["cut", "version", "type", "unknown", "duplicate", "header", "tab", "10MB", "bomb", "utf8", "binary"],
)  # fmt: skip
def test_every_bad_input_of_the_issue(run: Run, tmp_path: Path, text: str | bytes, complaint: str) -> None:
    done = run("config", "validate", "-", stdin=text)
    assert done.code == 1
    assert complaint in done.out
    assert "1 problem in 1 place" in done.err
    assert TOKEN[6:18] not in done.out + done.err
    assert max(map(len, done.out.splitlines())) < 300, "a complaint is a line that can be read"
    file = tmp_path / "file.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("config", "validate", file).code == 1


def test_several_errors_of_several_files_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "oem").mkdir()
    (tmp_path / "oem" / "1.yaml").write_text(GOOD.replace("servers: 3", "servers: x"))
    (tmp_path / "oem" / "2.yaml").write_text("#cloud-config\nk3s: {enabled: perhaps}\nhostname: -x\n")
    done = run("config", "validate", tmp_path / "oem", tmp_path / "gone.yaml")
    assert done.code == 1
    assert len(done.out.splitlines()) == 4
    for words in (
        "1.yaml:4:12: p2p.servers",
        "2.yaml:2:16: k3s.enabled",
        "2.yaml:3:11: hostname",
        "no such file",
    ):
        assert words in done.out
    assert "4 problems in 3 places" in done.err


def test_validate_needs_a_file(run: Run) -> None:
    assert run("config", "validate").code == 2


def test_schema_is_json(run: Run) -> None:
    document = json.loads(run("config", "schema").out)
    assert document["$schema"].startswith("https://json-schema.org/")
    assert "p2p" in document["properties"]


def test_nothing_heavy_is_imported_before_a_verb_runs() -> None:
    code = (
        "import sys, p2p_bootstrap.cli.config_verbs, p2p_bootstrap.cli.token_verbs\n"
        "heavy = ('pydantic', 'segno', 'cryptography', 'msgspec', 'yaml', 'trio', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_cloud_config_engine_runs_in_an_initramfs() -> None:
    """Standard library, PyYAML and the ground floor only."""
    code = (
        "import sys, p2p_bootstrap.cloudconfig.collect, p2p_bootstrap.cloudconfig.render\n"
        "roots = {m.split('.')[0] for m in sys.modules} - {*sys.stdlib_module_names, 'cython_runtime'}\n"
        "print(sorted(r for r in roots if not r.startswith('_')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['p2p_bootstrap', 'p2p_network', 'yaml']"


@pytest.mark.parametrize("verb", [("show",), ("show", "--origin")])
def test_what_cannot_be_read_is_no_success(run: Run, verb: tuple[str, ...], tmp_path: Path) -> None:
    done = run("config", *verb, str(tmp_path / "absent.yaml"))
    assert done.code == 1
    assert "no such file" in done.err


def test_a_join_token_is_shown_without_its_secrets(run: Run, tmp_path: Path) -> None:
    from p2p_network.admission.join_token import JoinToken, format_join_token

    token = JoinToken(
        b"s" * 16, "00112233aabbccdd", "0123456789abcdef", 2, b"p" * 32, b"r" * 32, b"a" * 32, 2_000_000_000,
        ("192.0.2.1:4701",),
    )  # fmt: skip
    text = format_join_token(token)
    done = run("token", "inspect", "-o", "json", stdin=text)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["invitation"], document["generation"]) == ("00112233aabbccdd", 2)
    assert document["expires"] == "2033-05-18 03:33:20Z"
    assert text[10:40] not in done.out
    config = tmp_path / "config.yaml"
    config.write_text(f"#cloud-config\np2p:\n  join_token: {text}\n")
    assert "00112233aabbccdd" in run("token", "inspect", str(config)).out
    assert run("token", "show", str(config)).out.strip() == text
    assert run("token", "inspect", stdin=text[:-4]).code == 1
    assert "invitation 00112233aabbccdd" in run("config", "validate", str(config)).out
