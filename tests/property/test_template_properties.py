"""What holds for every template? It is rendered, or a ConfigError; never anything else, never too much."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from p2p_bootstrap.cloudconfig import cmdline
from p2p_bootstrap.cloudconfig.functions import FUNCTIONS
from p2p_bootstrap.cloudconfig.template import MAX_OUTPUT_CHARS, render_text
from p2p_network.core.errors import ConfigError, Problem

DATA = {"MachineID": "abc", "Random": None, "Values": {"a": {"b": "c"}, "list": ["x", "y"], "n": 3}}
WORDS = (
    "{{",
    "}}",
    "{{-",
    "-}}",
    "if",
    "else",
    "end",
    ".MachineID",
    ".Values.a.b",
    ".Values.list",
    ".Random",
    "(",
    ")",
    "|",
    '"x"',
    "`y`",
    "7",
    "-1",
    "0",
    "1.5",
    "true",
    "nil",
    "/*",
    "*/",
    "\n",
    "$x",
    ".",
)
SOUP = st.lists(st.sampled_from((*WORDS, *FUNCTIONS)), max_size=24).map(" ".join)
VALUES = st.sampled_from(
    (
        ".MachineID",
        ".Values.list",
        ".Values.n",
        ".Values.a",
        ".Values.a.b",
        '"t"',
        "3",
        "0",
        "-2",
        "1.5",
        "true",
        "nil",
        '"99999999999999999999"',
        '"%"',
        '""',
    )
)
CALLS = st.builds(
    lambda name, values: f"{{{{ {name} {' '.join(values)} }}}}",
    st.sampled_from(tuple(FUNCTIONS)),
    st.lists(VALUES, max_size=4),
)


@given(SOUP | CALLS | st.text(max_size=60).map(lambda text: "{{" + text) | st.text(max_size=60))
@example("{{ 1 | " * 50)
@example("{{ " + "(" * 200)
@example("{{ if true }}" * 200)
@example("{{ mul 9999999999 9999999999 9999999999 }}")
@example("{{ 9" + "9" * 5000 + " | add 1 }}")
@example('{{ "' + "9" * 5000 + '" | int }}')
@example("{{ 1" + " | print" * 3000 + " }}")
@example("{{ lt nil 1 }}")
def test_a_text_is_rendered_or_a_config_error(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        rendered = render_text(text, DATA, file="f", line=3)
    except ConfigError as exc:
        problems = exc.problems
    else:
        assert len(rendered) <= MAX_OUTPUT_CHARS
        assert rendered == render_text(text, DATA), "twice is the same"
    assert all(problem.message and problem.line >= 3 for problem in problems)


@given(st.text(max_size=100).filter(lambda text: "{{" not in text))
def test_a_text_without_braces_stays(text: str) -> None:
    assert render_text(text, DATA) == text


@given(st.text(max_size=60).filter(lambda text: "`" not in text))
def test_a_quoted_text_comes_out_as_it_went_in(text: str) -> None:
    assert render_text("{{ `" + text + "` }}", DATA) == text


KERNEL = st.lists(
    st.sampled_from(
        (
            "quiet",
            "stages.boot[0].name=x",
            'kairos.config="a.b=c d"',
            "kairos.config=users.0.name=k",
            "a.b=c",
            "stages.boot[1]=y",
            "stages.boot=z",
            "config_url=https://x",
            "cos.setup=/y",
            "p2p.",
            "p2p..a=1",
            "kairos.config=",
            "users[0].name=k",
            'install."a.b"=1',
            '"',
            "p2p[0]=1",
            "k3s.args[999999]=1",
        )
    )
    | st.text(max_size=12),
    max_size=8,
).map(" ".join)


@given(KERNEL)
def test_no_command_line_surprises(text: str) -> None:
    found = cmdline.parse(text)
    assert all(problem.message and problem.column >= 1 for problem in found.problems)
