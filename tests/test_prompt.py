"""Prompts that Python's own format renders are those that Jinja renders."""

from __future__ import annotations

from random import Random
from typing import Any

import jinja2
import pytest

from weaverant.errors import UserError
from weaverant.prompt import Template

TEXTS = ["", " ", "%", "%%", "%(a)s", "%s", "{", "}", "{}", "{a}", "\n", "\r\n", "ä€😀", "\ud800", "$a", "\\n", "word"]
NAMES = ["a", "b", "long_name", "name_ä", "range", "self", "loop", "dict"]
VALUES: list[Any] = [*TEXTS, "<b>&", "{{ a }}", 7, 1.5, None, True, [1, "x"], {"k": "v"}]


class Shout(str):
    def __str__(self) -> str:
        return self.upper()


def rendered(template: jinja2.Template, variables: dict[str, Any]) -> str | type[Exception]:
    try:
        return template.render(variables)
    except jinja2.UndefinedError:
        return jinja2.UndefinedError


@pytest.mark.parametrize("seed", range(20))
def test_text_and_names_come_out_as_jinja_has_them(seed: int):
    odds = Random(seed)
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    differ = 0
    for _ in range(200):
        pieces = odds.choices(["text", "name", "filter"], (6, 5, 1), k=odds.randrange(1, 8))
        forms = {"text": odds.choice(TEXTS), "name": "{{ NAME }}", "filter": "{{- NAME|upper }}"}
        source = "".join(odds.choice(TEXTS) + forms[piece].replace("NAME", odds.choice(NAMES)) for piece in pieces)
        variables = {name: odds.choice(VALUES) for name in NAMES if odds.random() < 0.9}
        if odds.random() < 0.2:
            variables["a"] = Shout("quiet")
        try:
            expected = rendered(plain.from_string(source), variables)
        except jinja2.TemplateSyntaxError:
            with pytest.raises(UserError, match="not a Jinja template"):
                Template(source, "agent 'x'")
            continue
        template = Template(source, "agent 'x'")
        if expected is jinja2.UndefinedError:
            with pytest.raises(jinja2.UndefinedError, match="agent 'x'"):
                template.render(variables)
        elif "range" in template.text or "dict" in template.text:
            continue  # a class of Jinja's, whose address is in the text
        else:
            assert template.render(variables) == expected
            differ += expected != source
    assert differ > 30
