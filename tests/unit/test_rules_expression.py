"""Expressions: read as Rust reads them, or refused with what to write instead."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_delayq.rules.expression import compile_expression


@pytest.mark.parametrize(
    ("expression", "hint", "instead"),
    [
        (r"^(?<id>\d+)$", "(?<id>…) is written (?P<id>…) here", r"^(?P<id>\d+)$"),
        (r"a\z", r"\z is written \Z here", r"a\Z"),
        (r"\<a", r"\< is written \b here", r"\ba"),
        (r"a\>", r"\> is written \b here", r"a\b"),
        (r"\b{start}a", r"\b{start} is written \b here", r"\ba"),
        (r"a\b{end-half}", r"\b{end-half} is written \b here", r"a\b"),
        (r"a++", "++ is possessive here: write (?:…)+", "(?:a+)+"),
        (r"a*+", "*+ is possessive here", "(?:a*)+"),
        (r"a?+", "?+ is possessive here", "(?:a?)+"),
        (r"a{2,3}+", "{2,3}+ is possessive here", "(?:a{2,3})+"),
        (r"a{2, 3}", "{2, 3} is a text here: write it without spaces", "a{2,3}"),
        (r"a{ 2 }", "{ 2 } is a text here", "a{2}"),
        (r"(?U)a+", "the flags U and R are unknown here: write *?", "a+?"),
        (r"(?R)a", "the flags U and R", "a"),
        (r"(?iU:a+)", "the flags U and R", "(?i:a+?)"),
        (r"(?-u)\w", r"write [0-9A-Za-z_] for \w", "[0-9A-Za-z_]"),
        (r"(?i-u:\w)", r"write [0-9A-Za-z_] for \w", "(?i:[0-9A-Za-z_])"),
        (r"(?x) a b", "the flag x differs here: write no spaces", "ab"),
        (r"(?ix: a )", "the flag x differs here", "(?i:a)"),
        (r"a(?i)b", "flags within an expression hold for a group only here: write (?i:…)", "a(?i:b)"),
        ("\n(?i)b", "flags within an expression", "\n(?i:b)"),
        (r"(a(?i)b)", "flags within an expression", "(a(?i:b))"),
        (r"(?i-s)a", "flags are taken back for a group only here: write (?-i:…)", "(?i)a"),
        (r"[[:alpha:]]", "[:alpha:] is unknown here: write the characters, as [A-Za-z]", "[A-Za-z]"),
        (r"[x[:^digit:]]", "[:^digit:] is unknown here", r"\D"),
        (r"[a-z&&[^q]]", "&& in a class is unknown here: write the characters that are left", "[a-pr-z]"),
        (r"[a-z--q]", "-- in a class is unknown here", "[a-pr-z]"),
        (r"[a-z~~q]", "~~ in a class is unknown here", "[a-pr-z]"),
        (r"[a||b]", "write | once", "[a|b]"),
        (r"[a[bc]]", r"a class in a class is unknown here: write \[", "[abc]"),
        (r"[[a]", "a class in a class", r"[\[a]"),
        (r"\pL", r"\pL is unknown here: write the characters", r"\w"),
        (r"\p{Greek}", r"\p{Greek} is unknown here", "[α-ω]"),
        (r"[\P{Greek}x]", r"\P{Greek} is unknown here", "[^α-ω]"),
        (r"\x{e9}", r"\x{e9} is written \U000000e9 here", r"\U000000e9"),
        (r"[\u{1F600}]", r"\u{1F600} is written \U0001F600 here", r"[\U0001F600]"),
    ],
)
def test_what_differs_is_refused_with_what_to_write(expression: str, hint: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        compile_expression(expression)
    compile_expression(instead)


def test_the_place_is_told() -> None:
    with pytest.raises(ValueError, match=r"\(at character 4\)$"):
        compile_expression(r"^a/\pL")


@pytest.mark.parametrize(
    "expression", [r"\\z", r"\[[:]", r"[\]\[]", r"[]&]", "[^]]", "[a^-]", r"\{2, 3\}", "(?=a)(?!b)(?<=c)(?<!d)", "[+]+"]
)
def test_what_only_looks_like_it_is_not(expression: str) -> None:
    compile_expression(expression)


@pytest.mark.parametrize("expression", ["(", "a**", "[a", r"\y", "(?P<a>x)(?P<a>y)", "a{3,2}", "a{99999999999}", "\\"])
def test_what_is_none_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression: "):
        compile_expression(expression)


@pytest.mark.parametrize(
    ("expression", "text", "found"),
    [
        # In Rust $ is the very end; in Python also the place before a last line feed.
        ("^a$", "a", True),
        ("^a$", "a\n", False),
        ("(^a$)", "a\n", False),
        ("^a$|b", "a\n", False),
        ("(?i)^a$", "A\n", False),
        ("(?s)^a.$", "a\n", True),
        # But not where it stands for the ends of lines.
        ("(?m)^a$", "b\na\nc", True),
        ("(?m:^a$)", "b\na\nc", True),
        ("(?m:(b$))", "b\na", True),
        ("(?i-m:a$)", "a\n", False),
        ("(?m)(?-m:a$)", "a\nb", False),
        ("(?m:x)|a$", "a\n", False),
        ("(?m:x(?-m:y))|(?:a$)", "a\n", False),
        # Nor where it is a character.
        (r"^a\$", "a$", True),
        ("^a[$]", "a$", True),
        ("^a[]$]", "a$", True),
        ("^a[^]$]", "a$", False),
        (r"^a[\]$]", "a$", True),
        (r"^a\[$", "a[", True),
        (r"^\\$", "\\\n", False),
        (r"^a\Z", "a", True),
        (r"^a\Z$", "a", True),
        # It is looked for anywhere.
        ("b", "abc", True),
    ],
)
def test_what_it_finds(expression: str, text: str, found: bool) -> None:
    assert bool(compile_expression(expression).search(text)) is found


def test_a_closing_parenthesis_too_many_is_told() -> None:
    with pytest.raises(ValueError, match="unbalanced parenthesis"):
        compile_expression("(a))$")


@given(st.text(st.sampled_from(r"ab$^\[](){}?:<>P-imsxURu|&~*+.,2 zpL=!")) | st.text())
@example("(?m")
@example("[")
@example("[^")
def test_any_text_is_an_expression_or_none(text: str) -> None:
    with suppress(ValueError):
        compile_expression(text)


@given(st.text(max_size=20), st.text(max_size=3))
def test_an_escaped_text_finds_itself(text: str, more: str) -> None:
    expression = compile_expression(f"^{re.escape(text)}$")
    assert expression.search(text)
    assert bool(expression.search(text + more)) is (not more)
