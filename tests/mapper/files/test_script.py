from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.mapper.files.script import PLACEHOLDERS, Script

VALUES = {name: f"<{name}>" for name in PLACEHOLDERS}


def test_words_are_those_of_a_shell_and_values_stay_whole() -> None:
    script = Script.parse("python 'my client.py' {input} --url={base_url}/v1 \"{host}\" --port {port}")
    values = {**VALUES, "input": "a b'; $(touch x) \"\n*"}
    assert script.argv(values) == [
        *("python", "my client.py", values["input"], "--url=<base_url>/v1", "<host>", "--port", "<port>"),
    ]
    assert script.names == {"input", "base_url", "host", "port"}


def test_double_braces_stand_for_braces() -> None:
    script = Script.parse("""client {input} '{{"max": {{{port}}}}}'""")
    assert script.argv({**VALUES, "port": "8000"}) == ["client", "<input>", '{"max": {8000}}']


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("client {base_url}", "names no {input}", "for example"),
        ("", "names no {input}", "for example"),
        ("client {inputs}", "{inputs} is no placeholder (did you mean `input`?)", "{api_key_file}"),
        ("client {input} {0}", "{0} is no placeholder", "{output}"),
        ("client {input} {}", "{} is no placeholder", "{output}"),
        ("client {input} '{\"a\": 1}'", '{"a": 1} is no placeholder', "stand for braces"),
        ("client {input} {", "a single {", "{{"),
        ("client {input} }", "a single }", "}}"),
        ("client '{input}", "No closing quotation", "shell"),
        ("bash -c 'cat {input} > {output}/x'", "{input} stands in the text of a program", '"$1"'),
        ("env A=1 /bin/sh -ec 'cat \"{input}\"'", "{input} stands in the text of a program", '"$1"'),
        ("python3.12 -u -c 'print(\"{input}\")'", "{input} stands in the text of a program", '"$1"'),
        ("perl -e 'print q({input})'", "{input} stands in the text of a program", '"$1"'),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Script.parse(text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        'bash -c \'client "$1" > "$2"/answers\' - {input} {output}',
        "bash run.sh -c {input}",
        "python client.py -c {input}",
        "python -u client.py {input}",
        "bash --norc run.sh {input}",
    ],
)
def test_values_that_are_arguments_are_not(text: str) -> None:
    assert "<input>" in Script.parse(text).argv(VALUES)


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5),
    st.text(),
)
def test_any_words_come_out_as_they_went_in(words: list[str], value: str) -> None:
    text = shlex.join([word.replace("{", "{{").replace("}", "}}") for word in ["client", *words]])
    assert Script.parse(f"{text} {{input}}").argv({**VALUES, "input": value}) == ["client", *words, value]
