"""What rules make of an event."""

from __future__ import annotations

from typing import Any

import pytest

from celery_delayq.rules import Fetch, validated
from celery_delayq.rules.applying import CeleryTask, FetchFailed, RuleFailed, made_of, matches
from celery_delayq.rules.source import Event, Push


def made(rule: dict[str, Any], text: str, answers: dict[str, Any] | None = None, **watcher: Any) -> list[Any]:
    """What *rule* makes of an event; *answers* by the address that is fetched."""

    def fetching(fetch: Fetch, variables: Any) -> list[Any]:
        answer = (answers or {})[fetch.url.fill(variables)]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    variables = watcher.pop("variables", {})
    rules = validated({"watchers": [{"input_queue": "in", "rules": [{"name": "one", **rule}], **watcher}]})
    found = matches(rules.watchers[0], Event(b"", text, variables))
    return [one for match in found for one, _ in made_of(match, fetching)]


def test_groups_are_variables() -> None:
    make = {"task": "trt/${b}/${a}", "queue": "q/${a}", "set": "s/${b}"}
    assert made({"on": "^(?P<a>.*)/(?P<b>.*)$", "make": make}, "x/y") == [Push(b"trt/y/x", b"q/x", b"s/y")]
    assert made({"on": "^(?P<a>.*)/(?P<b>.*)$", "make": make}, "x") == []


def test_the_task_is_the_event_by_default() -> None:
    assert made({"on": "b", "make": [{"queue": "1"}, {"queue": "2"}]}, "abc") == [
        Push(b"abc", b"1"),
        Push(b"abc", b"2"),
    ]


def test_bytes_that_are_no_text_come_through() -> None:
    event = b"a/\xff".decode(errors="surrogateescape")
    assert made({"on": "^a/(?P<x>.*)$", "make": {"task": "${x}", "queue": "q"}}, event) == [Push(b"\xff", b"q")]


def test_each_object_of_an_answer_is_a_result() -> None:
    fetch = {"url": "http://a/", "returns": "a"}
    answers = {"http://a/": [{"n": 1}, {"n": 2}]}
    rule = {"on": ".", "fetch": fetch, "make": {"task": "${a.n}", "queue": "q"}}
    assert [push.task for push in made(rule, "x", answers)] == [b"1", b"2"]
    assert made(rule, "x", {"http://a/": []}) == []


def test_answers_of_one_name_are_added_up_and_of_two_combined() -> None:
    fetch = [
        {"url": "http://a/1", "returns": "a"},
        {"url": "http://b/${a.n}", "returns": "b"},
        {"url": "http://a/2", "returns": "a"},
    ]
    answers = {
        "http://a/1": [{"n": 1}],
        "http://a/2": [{"n": 2}],
        "http://b/1": [{"m": "x"}, {"m": "y"}],
        "http://b/2": [{"m": "z"}],
    }
    rule = {"on": ".", "fetch": fetch, "make": {"task": "${a.n}${b.m}", "queue": "q"}}
    assert [push.task for push in made(rule, "x", answers)] == [b"1x", b"1y", b"2z"]


@pytest.mark.parametrize(
    ("rule", "reason", "passing"),
    [
        ({"make": {"queue": "q", "task": "${a}"}}, "${a} has no value", False),
        ({"make": {"queue": "${b}"}}, "queue is empty", False),
        ({"make": {"queue": "q", "set": "${b}"}}, "set is empty", False),
        ({"make": {"celery": "${b}"}}, "celery is empty", False),
        ({"make": {"celery": "x", "task_id": "${b}"}}, "task_id is empty", False),
        ({"make": {"celery": "x", "args": ["${input_task:int}"]}}, "${input_task:int} is 'x'", False),
        ({"fetch": {"url": "http://a/", "returns": "c"}, "make": {"queue": "${c.none}"}}, "no value", True),
        ({"fetch": {"url": "http://a/", "returns": "c"}, "make": {"queue": "${c.odd}"}}, "is no text", True),
        ({"fetch": {"url": "http://away/", "returns": "c"}, "make": {"queue": "q"}}, "away", True),
        ({"fetch": {"url": "http://wrong/", "returns": "c"}, "make": {"queue": "q"}}, "wrong", False),
    ],
)
def test_a_rule_that_fails_makes_nothing(rule: dict[str, Any], reason: str, passing: bool) -> None:
    answers = {
        "http://a/": [{"odd": "\ud800"}],
        "http://away/": FetchFailed("away", passing=True),
        "http://wrong/": FetchFailed("wrong", passing=False),
    }
    with pytest.raises(RuleFailed) as caught:
        made({"on": "(?P<a>y)?(?P<b>)", **rule}, "x", answers)
    assert str(caught.value).startswith("rule 'one': ")
    assert reason in str(caught.value)
    assert caught.value.passing is passing


def test_a_celery_task() -> None:
    make = {
        "celery": "proj.${kind}",
        "args": ["${n:int}", ["${n}"], None, {"a": "${n:json}"}],
        "kwargs": {"event": "${input_task}"},
        "task_id": "trt-${n}",
        "delay": "10m",
    }
    (task,) = made({"on": "(?P<kind>[a-z]+)(?P<n>[0-9]+)", "make": make}, "treat12")
    assert isinstance(task, CeleryTask)
    assert task.args == [12, ["12"], None, {"a": 12}]
    assert task.kwargs == {"event": "treat12"}
    assert task.filled == {"celery": "proj.treat", "task_id": "trt-12", "delay": "10m"}


def test_what_celery_tasks_have_done() -> None:
    rule = {"on": {"task": "proj.*", "state": "success"}, "make": {"task": "${result.id}/${args.0}", "queue": "q"}}
    event = {"task": "proj.acquire", "state": "success", "result": {"id": 7}, "args": ["x"]}
    assert made(rule, "{}", source="task", variables=event) == [Push(b"7/x", b"q")]
    assert made(rule, "{}", source="task", variables={**event, "state": "failure"}) == []
    assert made(rule, "{}", source="task", variables={**event, "task": "other"}) == []


def test_fields_of_a_stream() -> None:
    rule = {"on": "a", "make": {"task": "${fields.kind}", "queue": "q"}}
    assert made(rule, "a", source="stream", variables={"fields": {"kind": "k"}}) == [Push(b"k", b"q")]
