"""What do templates say, and how do they say that they can't?"""

from __future__ import annotations

import pytest

from p2p_bootstrap.cloudconfig.template import render_text
from p2p_network.core.errors import ConfigError

DATA = {
    "MachineID": "abcdef0123456789",
    "Random": None,
    "Values": {
        "node": {"hostname": "edge-7", "empty": ""},
        "network": [{"name": "eth0", "macaddress": "52:54:00:aa:bb:cc"}],
        "cpu": {"threads": 4},
    },
}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("node-{{ trunc 4 .MachineID }}", "node-abcd"),
        ("{{ .MachineID | trunc -4 }}", "6789"),
        ("{{.Values.node.hostname}}", "edge-7"),
        ("{{ .Values.node.hostname | upper | quote }}", '"EDGE-7"'),
        ('{{ replace ":" "" (index .Values.network 0 "macaddress") }}', "525400aabbcc"),
        ('{{ .Random | default "none" }}', "none"),
        ('{{ default "d" .Values.node.empty }}', "d"),
        ('{{ default "d" .Values.not.there }}', "d"),
        ('{{ "a{{b}}" }}', "a{{b}}"),
        ("{{ `raw \\n` }}", "raw \\n"),
        ('{{ "tab\\t" }}', "tab\t"),
        ("a  {{- 1 -}}  b", "a1b"),
        ("a{{/* nothing }} */}}b", "ab"),
        ('{{ if eq .Values.node.hostname "edge-7" }}yes{{ else }}no{{ end }}', "yes"),
        (
            "{{ if gt .Values.cpu.threads 8 }}a{{ else if ge .Values.cpu.threads 4 }}mid{{ else }}c{{ end }}",
            "mid",
        ),
        ("{{ if not .Random }}{{ if true }}in{{ end }}{{ end }}", "in"),
        ('{{ join "," (splitList "-" "a-b") }}', "a,b"),
        ("{{ add 1 2 }}{{ sub 5 3 }}{{ mul 2 3 }}{{ div 7 2 }}{{ mod 7 2 }}", "32631"),
        ('{{ b64enc "hi" | b64dec }}', "hi"),
        ('{{ sha256sum "" | trunc 8 }}', "e3b0c442"),
        ('{{ nindent 2 "a\\nb" }}', "\n  a\n  b"),
        ('{{ ternary "y" "n" (contains "dge" .Values.node.hostname) }}', "y"),
        ('{{ trimSuffix "-7" .Values.node.hostname | title }}', "Edge"),
        ("{{ len .Values.network }}", "1"),
        ("no braces } } {", "no braces } } {"),
    ],
)
def test_what_is_rendered(text: str, rendered: str) -> None:
    assert render_text(text, DATA) == rendered


@pytest.mark.parametrize(
    ("text", "line", "complaint", "hint"),
    [
        ("{{ trunk 4 .MachineID }}", 1, "no function 'trunk'", "did you mean 'trunc'?"),
        ("a\nb {{ .Machine }}", 2, "no value .Machine", "did you mean .MachineID?"),
        ("{{ .Release.Name }}", 1, "no value .Release", '{{ "{{" }}'),
        ("{{ .Random }}", 1, ".Random has no value on this machine", "default"),
        ("{{ .Values.node.nope }}", 1, ".Values.node.nope has no value", "default"),
        ("{{ .MachineID ", 1, "never closed", "}}"),
        ('{{ "abc }}', 1, "never closed", '"'),
        ("{{ }}", 1, "nothing stands between", ""),
        ("{{ if true }}x", 1, "has no end", "end"),
        ("x\n{{ end }}", 2, "has no if before it", ""),
        ("{{ range .Values.network }}{{ end }}", 1, "'range' is not supported", "if"),
        ("{{ uuidv4 }}", 1, "'uuidv4' is not supported", ".UUID"),
        ("{{ $x := 1 }}", 1, "not understood", "variables"),
        ("{{ trunc 4 }}", 1, "trunc takes 2 values, found 1", ""),
        ('{{ trunc "a" .MachineID }}', 1, "expected a whole number", ""),
        ("{{ (trunc 4 .MachineID }}", 1, "parenthesis is never closed", ""),
        ("{{ .MachineID .MachineID }}", 1, "side by side", "function"),
        ("{{ div 1 0 }}", 1, "division by zero", ""),
        ("{{ repeat 999999999 .MachineID }}", 1, "expected a number from 0", ""),
        ("{{ index .Values.network 3 }}", 1, "no item 3", ""),
        ("{{ . }}", 1, "dot alone", ".MachineID"),
    ],
)
def test_what_is_refused_and_where(text: str, line: int, complaint: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render_text(text, DATA, file="oem/a.yaml", line=10, key="hostname")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.key) == ("oem/a.yaml", 9 + line, "hostname")
    assert complaint in problem.message
    assert hint in problem.hint
