"""Regular expressions are matched as `re` matches them, and in polynomial time."""

from __future__ import annotations

import random
import re
import time

import pytest

from lora_np.nn.patterns import ends_in_match, full_match

PARTS = ["attention.q_proj", "attention.k_proj", "mlp.up_proj"]
NAMES = [*(f"model.layers.{i}.{part}" for i in range(12) for part in PARTS), "lm_head"]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|ffn|dense)\.(?:(?:q_proj|k_proj|up_proj)))"
)
COMMON = {  # expression: how many of the names it matches
    r".*\.(q_proj|v_proj)$": 12,
    r"model\.layers\.(0|1|2)\..*": 9,
    r".*\.[0-3]\..*_proj": 12,
    r"^(?!.*mlp).*(?:q_proj|up_proj)$": 12,
    r"^(?:(?!lm_head).)*$": 36,
    r".*(?<!q)_proj": 24,
    r"(?i).*\.Q_PROJ": 12,
    r"model\.layers\.1[01]\.\w+\.[qk]_proj": 4,
    r".*layers\.\d{2}\..*": 6,
    UNSLOTH: 36,
}
ATOMS = ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", "[0-9b]", r"[^\d.]", "$", "^", r"\b", r"\B"]
EXPONENTIAL = [
    "(.+)+!",
    "((((a*)*)*)*)*!",
    "(.*)*" * 50 + "!",
    ".*" * 1400 + "!",
    "(.|.|)" * 400 + "!",
    "(m?){1000}" * 10 + "!",
    "((.{1,50}){1,50}){1,50}!",
    "(?=(?=(?=.*).*).*)" * 100 + "!",
    "(?!.*(?!.*(?!.*(?!.*(?!.*!)))))",
    "(?:(?!.*!).)*" * 100 + "!",
]


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        return rng.choice(ATOMS)
    inside = random_expression(rng, depth - 1)
    suffix = rng.choice(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{0,2}", "{3,}"])
    return rng.choice(
        [
            inside + random_expression(rng, depth - 1),
            f"({inside}|{random_expression(rng, depth - 1)})",
            f"(?:{inside}){suffix}",
            f"(?={inside})",
            f"(?!{inside})",
            rng.choice([r"(?<=a)", r"(?<!\.)", r"(?<=.b)"]) + inside,
        ]
    )


@pytest.mark.parametrize(("pattern", "matches"), COMMON.items())
def test_common_expressions_select_the_layers_that_re_selects(pattern, matches):
    found = [full_match(pattern, name) for name in NAMES]
    assert found == [re.fullmatch(pattern, name) is not None for name in NAMES]
    assert sum(found) == matches


def test_random_expressions_match_what_re_matches():
    """The names are not empty: before Python 3.14, `re` has no \\B in an empty string."""
    rng, matched = random.Random(0), 0
    names = ["a", "ab", "a.b", "abab", "b.a.1", "aa.b1", "1_a.ab", ".a", "A.b"]
    for _ in range(800):
        pattern = rng.choice(["", "", "(?i)"]) + random_expression(rng, rng.randrange(1, 5))
        for name in names:
            expected = re.fullmatch(pattern, name) is not None
            assert full_match(pattern, name) == expected, (pattern, name)
            matched += expected
    assert matched > 150


@pytest.mark.parametrize("pattern", ["q_proj", "attention.*", r"layers\.1\..*", "q_proj|up_proj", "^lm_head", "proj"])
def test_a_key_matches_the_end_of_a_name_as_in_peft(pattern):
    expected = [re.match(rf"(.*\.)?({pattern})$", name) is not None for name in NAMES]
    assert [ends_in_match(pattern, name) for name in NAMES] == expected


@pytest.mark.parametrize("pattern", EXPONENTIAL, ids=lambda pattern: pattern[:20])
def test_expressions_that_make_re_hang_are_matched_or_refused_at_once(pattern):
    start = time.monotonic()
    for name in NAMES:
        try:
            assert full_match(pattern, name) == pattern.startswith("(?!")
        except ValueError as error:
            assert "needs too many steps" in str(error)
            break
    assert time.monotonic() - start < 10  # measured: less than 1 s; `re` needs years for the first one


@pytest.mark.parametrize("pattern", [r"(.)\1", "(?>a)b", "a*+", "(?i:a)b", "(a)?(?(1)b|c)"])
def test_what_sets_of_positions_cannot_compute_is_refused(pattern):
    with pytest.raises(ValueError, match="backreference, an atomic group, or flags"):
        full_match(pattern, "b")


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(q", "not a valid"),
        ("(" * 3000 + ")" * 3000, "6,000 characters; expected at most 3,000"),
        ("(?<=a+)b", "not a"),
    ],
)
def test_invalid_and_long_expressions_are_refused(pattern, problem):
    with pytest.raises(ValueError, match=problem):
        full_match(pattern, "b")
