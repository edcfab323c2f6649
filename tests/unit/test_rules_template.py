"""Templates: what is filled in, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.rules.template import Missing, Template

VARIABLES: dict[str, Any] = {
    "id": "7",
    "child": {
        "name": "x",
        "n": 12,
        "big": 10**400,
        "half": 0.5,
        "yes": True,
        "none": None,
        "empty": "",
        "infinite": float("inf"),
        "a.b": "dotted",
        "product-id": "with a dash",
        "inner": {"city": "Lyon", "x.y": 1},
        "list": [{"id": 1}, "second"],
    },
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain", "plain"),
        ("trt/${id}", "trt/7"),
        ("${id}${id}", "77"),
        ("${child.n}/${child.half}/${child.yes}", "12/0.5/true"),
        ("${child.big}", str(10**400)),
        ("${child.empty}", ""),
        ("${child.a.b}", "dotted"),
        ("${child.product-id}", "with a dash"),
        ("${child.inner.city}", "Lyon"),
        ("${child.inner.x.y}", "1"),
        ("${child.list.0.id}/${child.list.1}", "1/second"),
        ("${child.inner:json}", '{"city":"Lyon","x.y":1}'),
        ("${id:int}", "7"),
        ("${id:float}", "7.0"),
        ("$${id}", "${id}"),
        ("$id $ {id} }{", "$id $ {id} }{"),
        ("a$${b}${id}", "a${b}7"),
    ],
)
def test_filling_in(text: str, filled: str) -> None:
    assert Template(text).fill(VARIABLES) == filled
    assert Template(text).value(VARIABLES) == (filled if ":" not in text else json.loads(filled))


@pytest.mark.parametrize(
    "text", ["${", "${}", "${ id}", "${id", "${1}", "${a b}", "${.a}", "${a..b}", "${a.}", "${a-b}"]
)
def test_what_is_no_variable(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no variable: write \$\{name\}, or \$\$\{ for \$\{ itself"):
        Template(text)


@pytest.mark.parametrize("text", ["${id:}", "${id:number}", "${id:int:int}"])
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(ValueError, match="has an unknown type: there are str, int, float, bool, json"):
        Template(text)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "has no value"),
        ("child.nothing", "has no value"),
        ("child.none", "has no value"),
        ("child.name.x", "has no value"),
        ("child.list.2", "has no value"),
        ("child.list.-1", "has no value"),
        ("child.list.id", "has no value"),
        ("child.inner", "write ${child.inner:json} for it as JSON"),
        ("child.list", "write ${child.list:json} for it as JSON"),
        ("child.infinite", "is inf"),
        ("child.name:int", "is 'x'"),
        ("child.half:int", "is 0.5"),
        ("child.yes:int", "is True"),
        ("child.inner:int", "is {'city'"),
        ("child.infinite:int", "is inf"),
        ("child.infinite:float", "is inf"),
        ("child.big:float", "is 1000"),
        ("child.name:bool", "is 'x'"),
        ("child.name:json", "is 'x'"),
    ],
)
def test_what_has_no_value_is_never_filled_in(name: str, why: str) -> None:
    for use in (Template(f"${{{name}}}").fill, Template(f"${{{name}}}").value, Template(f"a ${{{name}}}").fill):
        with pytest.raises(Missing) as caught:
            use(VARIABLES)
        assert why in str(caught.value)
        assert f"${{{name.partition(':')[0]}" in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("int", "007", 7),
        ("int", "-7", -7),
        ("float", "1e3", 1000.0),
        ("bool", "True", True),
        ("bool", "0", False),
        ("str", "7", "7"),
        ("json", '{"a": [1]}', {"a": [1]}),
        ("json", '"x"', "x"),
        ("json", "12345678901234567890", 12345678901234567890),
    ],
)
def test_a_text_read_as_a_type(type_name: str, text: str, value: Any) -> None:
    read = Template(f"${{n:{type_name}}}").value({"n": text})
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("int", ""),
        ("int", " 7"),
        ("int", "1_000"),
        ("int", "٣"),
        ("int", "7.0"),
        ("int", "9" * 5000),
        ("float", "nan"),
        ("float", "-inf"),
        ("float", "1_0.5"),
        ("bool", "yes"),
        ("json", "{"),
        ("json", "NaN"),
        ("json", "[" * 100_000),
    ],
)
def test_a_text_that_is_not_of_the_type(type_name: str, text: str) -> None:
    with pytest.raises(Missing):
        Template(f"${{n:{type_name}}}").value({"n": text})


@pytest.mark.parametrize(
    ("type_name", "value"), [("str", "12"), ("int", 12), ("float", 12.0), ("json", 12), ("", "12")]
)
def test_a_number_read_as_a_type(type_name: str, value: Any) -> None:
    read = Template(f"${{child.n{type_name and ':'}{type_name}}}").value(VARIABLES)
    assert read == value
    assert type(read) is type(value)


def test_only_values_are_quoted() -> None:
    assert Template("a/${id}/b").fill({"id": "/"}, quote=lambda value: value.replace("/", "%2F")) == "a/%2F/b"


def test_what_is_known_of_one() -> None:
    template = Template("a${b.c:int}d${e}")
    assert template.names == ["b.c", "e"]
    assert template.begins_with == "a"
    assert (Template("${a}").begins_with, Template("").begins_with) == ("", "")
    assert repr(template) == "Template('a${b.c:int}d${e}')"
    assert template == Template(template.text) != Template("")
    assert hash(template) == hash(Template(template.text))


@given(st.text())
def test_a_text_without_variables_stays(text: str) -> None:
    assert Template(text.replace("${", "$${")).fill({}) == text


@given(st.text(), st.text(), st.text())
def test_a_value_is_filled_in_as_it_is(before: str, value: str, after: str) -> None:
    """Also one that looks like a variable."""
    before, after = before.replace("$", ""), after.replace("$", "")
    assert Template(f"{before}${{x}}{after}").fill({"x": value}) == before + value + after
