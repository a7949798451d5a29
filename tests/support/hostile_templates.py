"""Chat templates that loop, grow or compile for ever in Jinja's own sandbox: name → template. The conversation is small."""

from __future__ import annotations

_DOUBLED = "{% set l = namespace(x=['x']) %}{% for i in range(64) %}{% set l.x = [l.x, l.x] %}{% endfor %}"
_LONG = "{% set s = 'a' * 2000000 %}"

HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops in a macro": "{% macro m() %}{% for a in range(99999) %}{{ m() }}{% endfor %}{% endmacro %}{{ m() }}",
    "a recursive macro with two calls": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "a recursive loop": "{% for x in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a block that contains itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "text in a loop": "{% for a in range(99999) %}" + "x" * 5000 + "{% endfor %}",
    "text in a loop in a block": "{% set s %}{% for a in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
    "a long string": "{{ 'x' * 10**10 }}",
    "a long list": "{{ ([0] * 10**10)|length }}",
    "a string that doubles": "{% set n = namespace(x='x') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a string that doubles by ~": "{% set n = namespace(x='x') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(x=[0]) %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a list of itself as text": _DOUBLED + "{{ l.x }}",
    "a list of itself compared": _DOUBLED + "{{ l.x == [l.x[0], l.x[1]] }}",
    "a list of itself as JSON": _DOUBLED + "{{ l.x|tojson }}",
    "a dictionary of itself": (
        "{% set l = namespace(x={}) %}{% for i in range(64) %}{% set l.x = dict(a=l.x, b=l.x) %}{% endfor %}{{ l.x }}"
    ),
    "namespaces of namespaces": (
        "{% set n0 = namespace() %}{% set o = namespace(n=n0) %}{% for i in range(64) %}"
        "{% set o.n = namespace(a=o.n, b=o.n) %}{% endfor %}{{ o.n }}"
    ),
    "a power": "{{ 10 ** (10**8) }}",
    "powers of powers": "{% set n = namespace(x=7) %}{% for i in range(64) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a division": "{% set x = ('f' * 8000000)|int(base=16) %}{{ (x // (x // 3)) }}",
    "a wide centre": "{{ 'x'|center(10000000000) }}",
    "a wide format": "{{ '%10000000000d' % 1 }}",
    "a wide format by *": "{{ '%*d' % (10000000000, 1) }}",
    "a wide format filter": "{{ '%10000000000d'|format(1) }}",
    "a wide format method": "{{ '{:10000000000}'.format(1) }}",
    "a wide format by a field": "{{ '{:{}}'.format(1, 10000000000) }}",
    "a wide str method": "{{ 'x'.ljust(10000000000) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "a replacement": _LONG + "{{ s.replace('a', s) }}",
    "a replacement filter": _LONG + "{{ s|replace('a', s) }}",
    "a join": _LONG + "{{ s.join(s) }}",
    "a join filter": _LONG + "{{ s|join(s) }}",
    "a translation": _LONG + "{{ s.translate({97: s}) }}",
    "an indent": "{% set s = '\n' * 1000000 %}{{ s|indent('x' * 1000000) }}",
    "an indented JSON": "{{ range(50000)|list|tojson(indent=1000000) }}",
    "separators of a JSON": _LONG + "{{ range(50000)|list|tojson(separators=(s, s)) }}",
    "a batch": "{{ [1]|batch(10**9, 0)|list }}",
    "a literal batch": "{{ [1]|batch(1000000000, 0)|list }}",
    "slices": "{{ [1]|slice(1000000000)|list }}",
    "many copies": _LONG + "{% set l = [" + "s[1:], " * 3000 + "] %}",
    "a backward search": "{% set s = 'a' * 4000000 %}{{ s.rfind('b' + 'a' * 2000000) }}",
    "a strip": "{% set s = 'a' * 4000000 %}{{ s.strip('b' * 2000000 + 'a')|length }}",
    "a split": "{% set s = 'a ' * 4000000 %}{{ s.split()|length }}{{ s.split(' ')|length }}{{ s.splitlines()|length }}",
    "a sum of lists": "{% set l = [[0]] * 300000 %}{{ l|sum(start=[])|length }}",
    "many comparisons": "{% set l = [[0]] * 200000 %}{% set m = [[0]] * 200000 %}"
    + "{% if l == m %}{% endif %}" * 1800,
    "many searches": "{% set l = [[0]] * 200000 %}" + "{% if 1 in l %}{% endif %}" * 1800,
    "marks in nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% generation %}x{% endgeneration %}{% endfor %}{% endfor %}"
    ),
    "marks in marks": (
        "{% macro m() %}{% generation %}x{{ m() }}{{ m() }}{% endgeneration %}{% endmacro %}"
        "{% for a in range(99999) %}{{ m() }}{% endfor %}"
    ),
    "a mark around a long text": _LONG
    + "{% for a in range(99) %}{% generation %}{{ s }}{% endgeneration %}{% endfor %}",
    "a mark in a mark in a mark": "{% generation %}" * 900 + "x" + "{% endgeneration %}" * 900,
    "a long format of the time": _LONG + "{{ strftime_now(s) }}",
    "many times": "{% for a in range(99999) %}{{ strftime_now('%c' * 100) }}{% endfor %}",
    "a wide time": "{{ strftime_now('%1000000000d' * 100)|length }}{% for a in range(999999999) %}{% endfor %}",
    "a dictionary of a long list": "{% for a in range(99999) %}{{ dict.fromkeys(range(99999)) }}{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=1000000) }}",
    "a precision": "{{ 1.5|round(1000000000, 'floor') }}",
    "a URL": "{{ ('a@' * 1000000)|urlize }}",
    "tags": "{{ ('<' * 1000000)|striptags }}",
    "wrapped words": "{{ ('a-' * 1000000)|wordwrap(3) }}",
    "many operators": "{{ 1" + "+1" * 24_000 + " }}",
    "many filters": "{{ x" + "|e" * 24_000 + " }}",
    "many brackets": "{{ " + "[" * 24_000 + "]" * 24_000 + " }}",
    "many blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "many outputs": "{{a}}" * 9_999,
    "many open comments": "{#" * 24_000,
    "many open strings": "{{ " + "'\\" * 24_000,
    "many spaces": "{% if 1 %}" + (" " * 40 + "\n") * 1000 + "{%- endif -%}",
    "a long template": "x" * 200_000,
    "a deep literal": "{{ " + "(" * 900 + ")" * 900 + " }}",
}
