"""What a template computes is bounded beforehand, and benign templates notice nothing."""

from __future__ import annotations

import pytest

from cortex.text.bounds import Exceeded
from cortex.text.sandbox import TemplateEnvironment

BIG = "{% set x = 'x' * 100000 %}"
MANY = "{% for a in range(60) %}"
NESTED = "{% set n = namespace(s=[1]) %}" + MANY + "{% set n.s = [n.s, n.s] %}{% endfor %}"


def rendered(source: str) -> str:
    environment = TemplateEnvironment()
    return environment.render(environment.compiled(source), {})


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(s='x') %}" + MANY + "{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}" + MANY + "{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}" + MANY + "{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}"
        + MANY
        + "{% set b %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = b %}{% endfor %}",
        "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}{% set n = namespace(s='x') %}"
        + MANY
        + "{% set n.s = d(n.s) %}{% endfor %}",
        NESTED + "{{ n.s }}",
        NESTED + "{{ n.s | tojson }}",
        NESTED + "{{ n.s | string }}",
        NESTED + "{{ 'a' ~ n.s }}",
        BIG + "{{ x.replace('x', x) }}",
        BIG + "{{ x | replace('x', x) }}",
        BIG + "{{ x.join(x) }}",
        BIG + "{{ x | list | join(x) }}",
        BIG + "{{ x.replace('x', '\t').expandtabs(99999) }}",
        BIG + "{{ [[x], [x]] | sum(start=[]) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:{w}}'.format(1, w=999999) }}",
        "{{ '{:{0[0]}}'.format([999999999]) }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ [1] | batch(10 ** 9, 0) | list }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_what_would_grow_out_of_hand_is_not_begun(source):
    with pytest.raises(Exceeded):
        rendered(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'aXbX'.replace('X', '--') }}{{ 'aX' | replace('X', 'y') }}", "a--b--ay"),
        ("{{ ', '.join(['a', 'b']) }}{{ [1, 2] | join('|') }}", "a, b1|2"),
        ("{{ [{'n': 1}, {'n': 2}] | map(attribute='n') | join('+') }}", "1+2"),
        ("{{ [{'n': 1}, {'n': 2}] | join('+', attribute='n') }}", "1+2"),
        ("{{ '%05d %s' % (7, 'x') }}{{ '%.2f' | format(1.5) }}", "00007 x1.50"),
        ("{{ '{:>4}|{}'.format('a', 1) }}", "   a|1"),
        ("{{ [1, 2] | sum }}{{ [{'n': 2}] | sum(attribute='n') }}", "32"),
        ("{{ [1, 2] + [3] }}{{ [0] * 2 }}{{ {'a': none} }}", "[1, 2, 3][0, 0]{'a': None}"),
        ("{{ 'a\nb' | indent(2) }}{{ 'a' | center(3) }}", "a\n  b a "),
        ("{{ [1, 2, 3] | batch(2) | list }}", "[[1, 2], [3]]"),
        ("{% set b %}x{{ 1 }}{% endset %}{{ b }}{{ none }}{{ missing }}", "x1None"),
        ("{{ {'b': '<é>&', 'a': [1.0]} | tojson }}", '{"b": "<é>&", "a": [1.0]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
    ],
)
def test_what_templates_do_is_as_ever(source, text):
    assert rendered(source) == text
