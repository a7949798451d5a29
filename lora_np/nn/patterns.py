r"""Match regular expressions in polynomial time. The expressions in an adapter's file can be hostile.

Python's `re` tries one way of matching after another, so `(.+)+!` needs 2ⁿ steps for a name of n characters. This
module computes with sets of positions instead. From the set of positions where a part of the expression can begin, the
module computes the set of positions where this part can end:

    a        positions where the next character is "a"   →  these positions + 1
    xy       first x, then y
    x|y      the union
    x*       repeated until no position is new
    (?=x)    the positions where x matches

A set is an int: bit i stands for position i. The module uses the parser of `re`, so an expression has its usual
meaning. Backreferences and atomic groups cannot be computed with sets, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from re import _parser  # type: ignore[attr-defined]
from typing import Any

LONGEST_PATTERN = 3_000  # characters
STEPS_PER_CHARACTER, STEPS_AT_LEAST = 4, 200  # the limit for one name; common expressions need less than 100 steps
NO_BACKTRACKING = re.compile(r"[^*+?{|(]*")  # without these characters, `re` has only one way to match
REFUSED = {"GROUPREF", "GROUPREF_EXISTS", "ATOMIC_GROUP", "POSSESSIVE_REPEAT"}

CATEGORIES = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
}


def full_match(pattern: str, name: str) -> bool:
    """Return True if the regular expression matches the whole name, as `re.fullmatch` does.

    Raises ValueError if the expression is invalid, or cannot be matched in polynomial time.
    """
    return match_from(pattern, name, (0,))


def ends_in_match(pattern: str, name: str) -> bool:
    """Return True if the regular expression matches the last dot-separated components of a name.

    Raises the same errors as `full_match`.
    """
    return match_from(pattern, name, (0, *(i + 1 for i, character in enumerate(name) if character == ".")))


@lru_cache(maxsize=1 << 14)
def match_from(pattern: str, name: str, starts: tuple[int, ...]) -> bool:
    """Return True if the regular expression matches a name from one of the positions `starts` to the end."""
    plain, tree, flags = parse(pattern)
    if plain is not None:
        return any(plain.fullmatch(name, start) is not None for start in starts)
    matcher = Matcher(pattern, name, flags)
    try:
        return bool(matcher.ends(tree, sum(1 << start for start in starts)) >> len(name))
    except RecursionError:
        raise ValueError(f"the regular expression {pattern[:200]!r} is nested too deeply") from None


@lru_cache(maxsize=1 << 12)
def parse(pattern: str) -> tuple[re.Pattern[str] | None, Any, int]:
    """Return the compiled expression (None if `re` may need backtracking), the expression's tree, and its flags.

    Raises ValueError if the expression is invalid, too long, or cannot be matched in polynomial time.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(
            f"the regular expression {pattern[:40]!r}… has {len(pattern):,} characters; expected at most "
            f"{LONGEST_PATTERN:,}. Use a list of layer names"
        )
    try:
        compiled, tree = re.compile(pattern), _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern[:200]!r} is not a valid regular expression: {error}") from None
    for operation, argument in parts(tree):
        if operation in REFUSED or (operation == "SUBPATTERN" and any(argument[1:3])):
            raise ValueError(
                f"the regular expression {pattern[:200]!r} has a backreference, an atomic group, or flags inside a group; "
                "these are not supported, because they can need exponential time. Use a list of layer names"
            )
    return None if needs_steps(pattern) else compiled, tree, tree.state.flags


def parts(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the argument of every part of an expression."""
    for operation, argument in tree:
        yield str(operation), argument
        inside = argument[1] if str(operation) == "BRANCH" else argument if isinstance(argument, tuple) else ()
        for child in inside:
            if isinstance(child, _parser.SubPattern):
                yield from parts(child)


def needs_steps(pattern: str) -> bool:
    """Return True if an expression has repetitions, alternatives or groups."""
    return NO_BACKTRACKING.fullmatch(pattern) is None


class Matcher:
    """Matches one name against one regular expression."""

    def __init__(self, pattern: str, name: str, flags: int) -> None:
        self.pattern, self.name, self.flags = pattern, name, flags
        self.fitting: dict[tuple[str, Any], int] = {}  # part of one character → positions of the characters that fit
        self.steps_left = STEPS_AT_LEAST + STEPS_PER_CHARACTER * len(pattern)

    def ends(self, tree: Any, starts: int) -> int:
        """Return the positions where a sequence of parts can end, if it begins at one of `starts`."""
        for operation, argument in tree:
            if not starts:
                return 0
            self.steps_left -= 1
            if self.steps_left < 0:
                raise ValueError(
                    f"the regular expression {self.pattern[:200]!r} needs too many steps to match a name; write a simpler "
                    "expression or a list of layer names"
                )
            starts = self.step(str(operation), argument, starts)
        return starts

    def step(self, operation: str, argument: Any, starts: int) -> int:
        """Return the positions where one part of an expression can end, if it begins at one of `starts`."""
        match operation:
            case "SUBPATTERN":
                return self.ends(argument[3], starts)
            case "BRANCH":
                found = 0
                for tree in argument[1]:
                    found |= self.ends(tree, starts)
                return found
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, tree = argument
                return self.repetitions(int(least), int(most), tree, starts)
            case "ASSERT" | "ASSERT_NOT":
                (direction, tree), expected = argument, operation == "ASSERT"
                return self.positions(starts, lambda i: self.looks(direction, tree, i) == expected)
            case "AT":
                return self.positions(starts, lambda i: self.at(str(argument), i))
        key = operation, tuple(argument) if operation == "IN" else argument
        if key not in self.fitting:
            every = (1 << len(self.name)) - 1
            self.fitting[key] = self.positions(every, lambda i: self.fits(operation, argument, self.name[i]))
        return (starts & self.fitting[key]) << 1

    def repetitions(self, least: int, most: int, tree: Any, starts: int) -> int:
        """Return the positions where `least` to `most` repetitions of a sequence of parts can end.

        After more repetitions than the name has characters, the set no longer changes.
        """
        for _ in range(min(least, len(self.name) + 1)):
            starts = self.ends(tree, starts)
        found = new = starts
        for _ in range(min(most - least, len(self.name) + 1)):
            new = self.ends(tree, new) & ~found
            if not new:
                break
            found |= new
        return found

    def looks(self, direction: int, tree: Any, i: int) -> bool:
        """Return True if a lookahead (direction 1) or lookbehind (direction -1) matches at position i."""
        if direction == 1:
            return bool(self.ends(tree, 1 << i))
        start = i - tree.getwidth()[0]
        return start >= 0 and bool(self.ends(tree, 1 << start) >> i & 1)

    def at(self, where: str, i: int) -> bool:
        """Return True if position i is `where`: the beginning, the end, a word boundary, or no word boundary."""
        name, word = self.name, CATEGORIES["CATEGORY_WORD"]
        match where.removesuffix("_STRING"):
            case "AT_BEGINNING":
                return i == 0
            case "AT_END":
                return i == len(name)
        boundary = (i > 0 and word(name[i - 1])) != (i < len(name) and word(name[i]))
        return boundary == (where == "AT_BOUNDARY")

    def fits(self, operation: str, argument: Any, character: str) -> bool:
        """Return True if a character fits one part of an expression."""
        if operation == "ANY":
            return True
        items = argument if operation == "IN" else [("LITERAL", argument)]
        negated = operation == "NOT_LITERAL" or str(items[0][0]) == "NEGATE"
        variants = {character, character.lower(), character.upper()} if self.flags & re.IGNORECASE else {character}
        return any(self.contains(str(kind), value, c) for kind, value in items for c in variants) != negated

    def contains(self, kind: str, value: Any, character: str) -> bool:
        """Return True if an item of a character class contains a character."""
        match kind:
            case "LITERAL":
                return bool(ord(character) == value)
            case "RANGE":
                return bool(value[0] <= ord(character) <= value[1])
            case "CATEGORY":
                category = str(value).replace("_NOT_", "_")
                return CATEGORIES[category](character) != ("_NOT_" in str(value))
        return False

    def positions(self, among: int, holds: Callable[[int], bool]) -> int:
        """Return the positions of a set for which `holds(i)` is true."""
        return sum(1 << i for i in range(len(self.name) + 1) if among >> i & 1 and holds(i))
