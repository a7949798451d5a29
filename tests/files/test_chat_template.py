"""Tests of the limited renderer: ordinary templates give the text of plain Jinja, and hostile ones end soon with an error."""

from __future__ import annotations

import json
import threading
from datetime import datetime

import pytest
from hostile_templates import HOSTILE
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lora_np.files import chat_template, template_budget
from lora_np.files.chat_template import render, render_with_answers

CHAT = [
    {"role": "system", "content": "Be brief.\nAlways.", "tags": ["b", "a", "b"]},
    {"role": "user", "content": "  What is 2 < 3?  "},
    {"role": "assistant", "content": "<think>two</think>\n\nTrue — “yes”."},
    {"role": "user", "content": "Why?"},
]

ORDINARY = {
    "ChatML": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "Llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}{% for m in loop_messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system is not false %}{% set c = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
        "{% else %}{% set c = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}{{ ' ' + c.strip() + ' ' + bos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "Llama 3": (
        "{%- set ns = namespace(first=true, text='') -%}{%- macro head(role, end='<|eoh|>') -%}<|h|>{{ role|upper }}{{ end }}"
        "{%- endmacro -%}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- for m in messages if m.role != 'system' %}{{ head(m.role) ~ '\n\n' ~ m.content|trim ~ loop.index }}"
        "{%- if loop.last %}{{- '[' ~ loop.length ~ ']' }}{%- endif %}{%- set ns.first = false %}{%- endfor %}"
        "{{ date_string }}{{ ns.first }}{{ tools is none }}"
    ),
    "Qwen 3": (
        "{%- set ns = namespace(last=messages|length - 1, multi=true) %}{%- for m in messages[::-1] %}"
        "{%- set i = (messages|length - 1) - loop.index0 %}{%- if ns.multi and m.role == 'user' and m.content is string and "
        "not (m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}{%- set ns.multi = false %}"
        "{%- set ns.last = i %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- set c = m.content %}"
        "{%- if '</think>' in c %}{%- set r = c.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{{- '(' + r + ')' }}{%- endif %}{{- c }}"
        "{%- if loop.previtem %}{{ loop.previtem.role }}{%- endif %}{%- endfor %}{{ ns.last }}"
    ),
    "tools": (
        "{{ messages[0]|tojson(indent=2) }}{{ [1, 2.5, none, {'a': (1, 'é')}]|tojson }}{{ {'b': 1, 'a': 2}|dictsort }}"
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('role', 'none') }}"
        "{{ messages|map(attribute='role')|list }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
        "{{ messages[0].tags|unique|sort|join(', ') }}{{ messages[0].tags|join }}{{ range(3)|sum }}{{ 'a-b'|replace('-', '+') }}"
    ),
    "formats": (
        "{{ '%s is %05.1f' % ('x', 2.25) }}{{ '%d%%'|format(7) }}{{ '{0}-{a:>4}'.format('x', a=3) }}{{ 'ab'|center(8) }}|"
        "{{ messages[0].content|indent(4, true) }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ -7 % 3 }}{{ 'ab' * 3 }}{{ [1] + [2] }}{{ 1.5|round }}"
        "{{ 'x' if add_generation_prompt else 'y' }}{{ 'a b  c'.split() }}{{ 'a,b'.replace(',', ';', 1) }}"
        "{{ ', '.join(['a', 'b']) }}"
        "{{ [3, 1, 2]|sort|first }}{{ (1, 2)|last }}{{ 'abc'[1:] }}{{ 'abc'|list }}{{ [1, 2, 3]|batch(2, 0)|list }}{{ none }}"
        "{{ messages|length > 3 and 'a' in 'abc' }}{{ undefined_name }}{{ 'title case'|title }}{{ '5'|int + 1 }}"
        "{{ 'a' ~ 1 ~ none }}"
    ),
    "control": (
        "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}<{{ loop(x) }}>{% else %}{{ x }}{% endif %}{% endfor %}"
        "{% for x in [] %}{% else %}none{% endfor %}{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}"
        "{% endif %}{{ loop.cycle('a', 'b') }}{% endfor %}{% set s %}in {{ 1 }} a block{% endset %}{{ s|upper }}"
        "{% filter lower %}ABC{% endfilter %}{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}"
        "{% call m(1) %}called{% endcall %}{% with a = 3 %}{{ a }}{% endwith %}{% raw %}{{ raw }}{% endraw %}"
        "{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}{% block foot %}foot{% endblock %}{{ joiner(', ')() }}"
        "{% for x in messages %}{{ (loop.nextitem or x).role }}{{ loop.revindex }}{{ loop.changed(x.role) }}{% endfor %}"
    ),
}


def plain(template: str, **variables: object) -> str:
    """Render in the environment that transformers uses, without limits."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    return environment.from_string(template).render(**variables)


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_template_gives_the_text_of_plain_jinja(name):
    variables = {"add_generation_prompt": True, "bos_token": "<s>", "tools": None}
    expected = plain(ORDINARY[name], messages=CHAT, **variables)
    assert render(ORDINARY[name], CHAT, **variables) == expected and len(expected) > 50


def test_a_long_conversation_has_a_larger_budget():
    chat = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "x" * 1000}] * 1000
    assert len(render(ORDINARY["Qwen 3"], chat)) > 2_000_000
    assert len(render(ORDINARY["ChatML"], [{"role": "user", "content": "é" * 4_000_000}])) > 4_000_000


def test_the_budget_of_one_rendering_does_not_affect_the_next():
    with pytest.raises(ValueError, match="needs more work or memory"):
        render(HOSTILE["a long string"], CHAT)
    assert render("{{ messages|length }}", CHAT) == "4"


def test_half_a_surrogate_pair_is_an_error_of_the_template():
    with pytest.raises(ValueError, match="surrogates not allowed"):
        render("{{ '\\ud800' }}", CHAT)


def test_a_template_that_is_too_long_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match=f"has 200000 characters; at most {chat_template.LONGEST}"):
        render("x" * 200_000, CHAT)


MARKS = {
    "no marks": ("a{{ 1 }}b", []),
    "between texts": ("a{% generation %}b{{ 'cd' }}{% endgeneration %}e", ["bcd"]),
    "in a loop": ("{% for x in 'abc' %}-{% generation %}{{ x }}{% endgeneration %}{% endfor %}", ["a", "b", "c"]),
    "with spaces removed": ("a {%- generation -%} b {%- endgeneration -%} c", ["b"]),
    "touching": ("{% generation %}a{% endgeneration %}{% generation %}b{% endgeneration %}c", ["ab"]),
    "nested": ("{% generation %}a{% generation %}b{% endgeneration %}c{% endgeneration %}d", ["abc"]),
    "around nothing": ("a{% generation %}{% endgeneration %}b", []),
    "around half of the conversation": ("{% generation %}a{% if 1 %}b{% endif %}{% endgeneration %}", ["ab"]),
    "in text that is cut": (
        "{% filter truncate(1, true, '', 0) %}{% generation %}abc{% endgeneration %}{% endfilter %}",
        ["a"],
    ),
    "in text that is not written": ("a{% set x %}{% generation %}bcd{% endgeneration %}{% endset %}", []),
}


@pytest.mark.parametrize("name", MARKS)
def test_marks_are_the_positions_of_the_answers(name):
    template, expected = MARKS[name]
    text, answers = render_with_answers(template, CHAT)
    assert [text[first:last] for first, last in answers] == expected
    assert text == render(template, CHAT)
    edges = [edge for answer in answers for edge in answer]
    assert edges == sorted(set(edges)) and all(0 <= edge <= len(text) for edge in edges)


def test_the_marks_of_one_rendering_are_not_those_of_the_next():
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}"
    two = [(0, 17), (18, 36)]
    assert [render_with_answers(template, CHAT[:n])[1] for n in (2, 1, 2)] == [two, two[:1], two]


def test_the_time_of_a_template_is_the_local_time(monkeypatch):
    class Fixed(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 2, 3, 4, 5, 6)

    monkeypatch.setattr(chat_template, "datetime", Fixed)
    assert render("{{ strftime_now('%d %b %Y, %H:%M') }}", CHAT) == "03 Feb 2026, 04:05"
    with pytest.raises(ValueError, match="strftime"):
        render("{{ strftime_now() }}", CHAT)


def test_a_filter_does_not_take_the_arguments_of_json_that_transformers_refuses():
    with pytest.raises(ValueError, match="unexpected keyword argument 'cls'"):
        render("{{ messages|tojson(cls=1) }}", CHAT)


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_long_rendering_pauses_outside_the_main_thread(in_main_thread, monkeypatch):
    """A template holds Python's lock, so the server's engine would wait up to 5 ms each time it needs the lock."""
    pauses = []
    monkeypatch.setattr(template_budget, "sleep", pauses.append)
    monkeypatch.setattr(template_budget, "WORK", 2_000_000)

    def loop():
        with pytest.raises(ValueError, match="the template needs more"):
            render(HOSTILE["nested loops"], CHAT)
        long = len(pauses)
        render(ORDINARY["ChatML"], CHAT)
        pauses.append(long)

    if in_main_thread:
        loop()
        assert pauses == [0]
        return
    thread = threading.Thread(target=loop)
    thread.start()
    thread.join(60)
    assert pauses.pop() > 10 and set(pauses) == {template_budget.PAUSE}
