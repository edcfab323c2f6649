"""Files of rules: what they may say, and every fault with its place."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.errors import DelayQError
from celery_delayq.rules import Fault, InvalidRules, ListMake, Rule, Rules, Watcher, load, validated
from celery_delayq.rules.template import Template

RULE = {"name": "treat", "on": "^acq/(?P<id>\\d+)$", "make": {"task": "trt/${id}", "queue": "todo", "set": "set"}}
CELERY = {"name": "treat", "on": "^acq/(?P<id>\\d+)$", "make": {"celery": "proj.treat", "args": ["${id:int}"]}}
FETCH = {"url": "http://api.example.com/${id}", "returns": "child"}


def file(*rules: Any, **watcher: Any) -> dict[str, Any]:
    return {"watchers": [{"input_queue": "in", "rules": list(rules or [RULE]), **watcher}]}


def faults(data: object) -> list[str]:
    with pytest.raises(InvalidRules) as caught:
        validated(data, "rules.json")
    assert str(caught.value) == "\n".join(map(str, caught.value.faults))
    return [str(fault) for fault in caught.value.faults]


def faults_of(path: Path) -> str:
    with pytest.raises(InvalidRules) as caught:
        load(path)
    (fault,) = caught.value.faults
    assert str(path) in fault.place
    return str(fault).removeprefix(str(path))


# Reading files.

HJSON = """{
  # a comment
  watchers: [
    {
      input_queue: in
      rules: [
        {
          name: treat
          on: ^acq/(?P<id>\\d+)$
          make: { task: "trt/${id}", queue: "todo", set: "set" }
        }
      ]
    }
  ]
}
"""
YAML = """# a comment
watchers:
  - input_queue: in
    rules:
      - name: treat
        on: ^acq/(?P<id>\\d+)$
        make: {task: "trt/${id}", queue: todo, set: set}
"""
FILES = {
    ".json": json.dumps(file(), indent=1),
    ".hjson": HJSON,
    ".yaml": YAML,
    ".yml": YAML,
    ".JSON": json.dumps(file()),
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", FILES)
def test_the_same_rules_in_each_language(tmp_path: Path, suffix: str, mark: str, ending: str) -> None:
    path = tmp_path / f"rules{suffix}"
    path.write_bytes((mark + FILES[suffix].replace("\n", ending)).encode())
    assert load(path) == load(str(path)) == validated(file())


def test_hjson_without_its_braces_and_json_in_hjson(tmp_path: Path) -> None:
    path = tmp_path / "rules.hjson"
    path.write_text(HJSON.strip()[1:-1])
    assert load(path) == validated(file())
    path.write_text(json.dumps(file()))
    assert load(path) == validated(file())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10:30", "10:30"),
        ("2026-01-31", "2026-01-31"),
        ("yes", "yes"),
        ("off", "off"),
        ("0o17", "0o17"),
        ("017", "017"),
    ],
)
def test_yaml_does_not_guess(tmp_path: Path, text: str, value: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(YAML.replace('"trt/${id}"', text))
    (make,) = load(path).watchers[0].rules[0].make
    assert isinstance(make, ListMake)
    assert make.task == Template(value)


def test_yaml_knows_numbers_booleans_and_null(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    celery = '{celery: a, args: [1, -2, 1.5, 1e3, true, False, null, ~, "1", .5, +7]}'
    path.write_text(YAML.replace('{task: "trt/${id}", queue: todo, set: set}', celery))
    (make,) = load(path).watchers[0].rules[0].make
    assert make.args == [1, -2, 1.5, 1000.0, True, False, None, None, Template("1"), 0.5, 7]  # type: ignore[union-attr]


def test_yaml_merges(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "watchers:\n"
        "- input_queue: a\n"
        "  rules: [&rule {name: one, on: a, make: {queue: q}}, {<<: *rule, name: two}, {<<: *rule, on: b}]\n"
    )
    assert [(rule.name, rule.on.pattern) for rule in load(path).watchers[0].rules] == [  # type: ignore[union-attr]
        ("one", "a"),
        ("two", "a"),
        ("one", "b"),
    ]


@pytest.mark.parametrize(
    ("suffix", "text", "fault"),
    [
        (".json", "", "cannot be read: it is empty"),
        (".hjson", " \n", "cannot be read: it is empty"),
        (".yaml", "\ufeff", "cannot be read: it is empty"),
        (".yaml", "# nothing\n", "must be an object"),
        (".json", "{", "cannot be read: Expecting property name enclosed in double quotes: line 1 column 2"),
        (".json", "[" * 100_000, "cannot be read: "),
        (".hjson", "{a: [}", "cannot be read: "),
        (".yaml", "a: [", "line 1, column 5"),
        (".yaml", "a: 1\n---\nb: 1", "expected a single document"),
        (".yaml", "a: !!python/object:os.system x", "could not determine a constructor"),
        (
            ".json",
            '{"watchers": 1, "watchers": 2}',
            "cannot be read: the field 'watchers' is there twice in one object",
        ),
        (".hjson", "{watchers: 1\nwatchers: 2}", "the field 'watchers' is there twice"),
        (".hjson", "watchers: [{on: 1\non: 2}]", "the field 'on' is there twice"),
        (".yaml", "a: 1\nb: {c: 1, c: 2}", "the field 'c' is there twice"),
        (".json", "[]", "must be an object"),
        (".json", "null", "must be an object"),
        (".txt", "{}", "its name must end with one of .json, .hjson, .yaml, .yml"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, suffix: str, text: str, fault: str) -> None:
    path = tmp_path / f"rules{suffix}"
    path.write_text(text, "utf-8")
    assert fault in faults_of(path)


@pytest.mark.parametrize("suffix", [".json", ".hjson", ".yaml"])
def test_what_is_no_utf_8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rules{suffix}"
    path.write_bytes(b"{ \xff }")
    assert faults_of(path) == ": cannot be read: it is not UTF-8 at byte 3"


def test_files_that_are_none(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "none.json") == ": No such file or directory"
    (tmp_path / "folder.json").mkdir()
    assert faults_of(tmp_path / "folder.json") == ": Is a directory"


@pytest.mark.parametrize(("suffix", "module", "package"), [(".hjson", "hjson", "hjson"), (".yaml", "yaml", "PyYAML")])
def test_a_reader_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, package: str
) -> None:
    path = tmp_path / f"rules{suffix}"
    path.write_text("{}")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "celery_delayq.rules.yaml_reading", raising=False)
    assert faults_of(path) == f": {package} is not here: pip install {package}"


# What rules may say.


def test_the_shortest_file() -> None:
    rules = validated({"watchers": [{"input_queue": "in", "rules": [{"on": "a", "make": {"queue": "q"}}]}]})
    (watcher,) = rules.watchers
    (rule,) = watcher.rules
    assert (rules.url_of(watcher), rules.listener_channel) == ("redis://127.0.0.1:6379/", None)
    assert (watcher.source, watcher.taken, watcher.dead) == ("list", "in/taken", "in/dead")
    assert (rule.name, rule.fetch) == ("<anonymous rule>", [])
    assert rule.make == [ListMake(queue=Template("q"))]
    assert rule.make[0].task == Template("${input_task}")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        {**RULE, "make": [RULE["make"]]},
        {"name": "treat", "on_regex": RULE["on"], "makers": RULE["make"]},
        {"name": "treat", "on": {"done": RULE["on"]}, "todo": RULE["make"]},
        {"name": "treat", "on": RULE["on"], "todo": [RULE["make"]]},
        {**RULE, "fetch": []},
        {**RULE, "fetchers": []},
    ],
)
def test_all_spellings_of_resc_are_one(rule: dict[str, Any]) -> None:
    assert validated(file(rule)) == validated(file())


def test_one_fetch_or_several() -> None:
    one = validated(file({**RULE, "fetch": FETCH}))
    assert one == validated(file({**RULE, "fetch": [FETCH]})) == validated(file({**RULE, "fetchers": [FETCH]}))


def test_older_files(caplog: pytest.LogCaptureFixture) -> None:
    """Each watcher has its own Redis, and one set of tasks for all, which Resc itself ignores."""
    with caplog.at_level(logging.WARNING):
        rules = validated({**file(redis={"url": "redis://10.0.0.7/"}), "task_set": "global/set"}, "old.json")
    assert rules.url_of(rules.watchers[0]) == "redis://10.0.0.7/"
    assert "old.json: task_set is ignored" in caplog.text


def test_rules_of_python_objects() -> None:
    rule = Rule(
        name="treat",
        on="^acq/(?P<id>\\d+)$",  # type: ignore[arg-type]
        make=[ListMake(task="trt/${id}", queue="todo", set="set")],  # type: ignore[arg-type]
    )
    rules = Rules(watchers=[Watcher(input_queue="in", rules=[rule])])
    assert validated(rules) == validated(file())
    wrong = rule.model_copy(update={"make": [ListMake(queue="${ib}")]})  # type: ignore[arg-type]
    assert faults(Rules(watchers=[Watcher(input_queue="in", rules=[wrong])])) == [
        "rules.json, watcher 'in', rule 'treat', field make.0.queue: ${ib} is unknown; there are id, input_task"
    ]


@pytest.mark.parametrize(
    ("length", "seconds"), [(10, 10.0), (0.5, 0.5), ("90s", 90.0), ("1h 30m", 5400.0), ("2 days", 172_800.0)]
)
def test_lengths_of_time(length: object, seconds: float) -> None:
    assert validated(file(backoff=length)).watchers[0].backoff == seconds


@pytest.mark.parametrize(
    ("make", "known"),
    [
        ({"delay": "10m"}, "10m"),
        ({"delay": 90}, "90"),
        ({"delay": "90.5"}, "90.5"),
        ({"delay": "${id}m"}, "${id}m"),
        ({"at": "2026-01-31T12:00:00Z"}, "2026-01-31T12:00:00Z"),
        ({"at": 1_800_000_000}, "1800000000"),
        ({"at": "${id}"}, "${id}"),
    ],
)
def test_when_a_celery_task_runs(make: dict[str, Any], known: str) -> None:
    (made,) = validated(file({**CELERY, "make": {"celery": "x", **make}})).watchers[0].rules[0].make
    assert getattr(made, next(iter(make))) == Template(known)


def test_arguments_are_templates_however_deep() -> None:
    make = {"celery": "x", "args": [1, ["${id}"], None], "kwargs": {"${k}": {"a": "${id:int}"}}}
    (made,) = validated(file({**CELERY, "make": make})).watchers[0].rules[0].make
    assert made.args == [1, [Template("${id}")], None]  # type: ignore[union-attr]
    assert made.kwargs == {"${k}": {"a": Template("${id:int}")}}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("watcher", "rule"),
    [
        ({}, {"make": {"queue": "${input_task}/${id}"}}),
        ({}, {"fetch": [FETCH], "make": {"queue": "${child.a.b}"}}),
        ({}, {"fetch": [FETCH, {"url": "http://b/${child.x}", "returns": "more"}], "make": {"queue": "${more.y}"}}),
        ({"source": "stream"}, {"make": {"queue": "${fields.kind}"}}),
        (
            {"source": "task"},
            {
                "on": {"task": "a.*"},
                "make": {"task": "${task}${id}${state}${args.0}${kwargs.x}${result.y}${error}", "queue": "q"},
            },
        ),
    ],
)
def test_variables_that_are_known(watcher: dict[str, Any], rule: dict[str, Any]) -> None:
    validated(file({**RULE, **rule}, **watcher))


def test_events_of_tasks_need_no_queue() -> None:
    data = {"watchers": [{"source": "task", "rules": [{"on": {"task": "a"}, "make": {"queue": "q"}}]}]}
    assert validated(data).watchers[0].input_queue == "celery/done"


# What they may not.


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "rules.json: must be an object"),
        ([], "rules.json: must be an object"),
        ({}, "rules.json, field watchers: is missing"),
        ({"watchers": {}}, "rules.json, field watchers: must be a list"),
        ({"watchers": []}, "rules.json, field watchers: must not be empty"),
        ({"watchers": [5]}, "rules.json, watcher 1: must be an object"),
        ({**file(), "redis": "redis://"}, "rules.json, field redis: must be an object"),
        ({**file(), "redis": {"url": ""}}, "rules.json, field redis.url: must not be empty"),
        ({**file(), "redis": {"url": "redis://here/x"}}, "rules.json, field redis.url: 'x' is no number of a database"),
        ({**file(), "listener_channel": 5}, "rules.json, field listener_channel: must be a text"),
        ({**file(), "watcher": 5}, "rules.json, field watcher: is unknown; did you mean 'watchers'?"),
        ({**file(), "qqq": 5}, "rules.json, field qqq: is unknown"),
        ({**file(), "queue": 5}, "rules.json, field queue: does not belong here"),
    ],
)
def test_faults_of_files(data: object, fault: str) -> None:
    assert faults(data) == [fault]


def test_an_address_that_is_no_redis() -> None:
    """In redis-py's words."""
    (fault,) = faults({**file(), "redis": {"url": "http://here/"}})
    assert fault.startswith("rules.json, field redis.url: ")
    assert "redis://" in fault


@pytest.mark.parametrize(
    ("watcher", "fault"),
    [
        ({"rules": []}, "rules: must not be empty"),
        ({"rules": {}}, "rules: must be a list"),
        ({"source": "lists"}, "source: must be 'list', 'stream' or 'task'"),
        ({"max_attempts": 0}, "max_attempts: must be 1 or more"),
        ({"max_attempts": 1001}, "max_attempts: must be 1000 or less"),
        ({"max_attempts": True}, "max_attempts: must be a whole number"),
        ({"max_attempts": "5"}, "max_attempts: must be a whole number"),
        ({"max_attempts": 5.5}, "max_attempts: must be a whole number"),
        ({"max_in_work": 100_001}, "max_in_work: must be 100000 or less"),
        ({"backoff": True}, "backoff: must be a length of time, as 10, '90s', '1h 30m'"),
        ({"backoff": None}, "backoff: must be a length of time, as 10, '90s', '1h 30m'"),
        ({"backoff": "soon"}, "backoff: 'soon' is no length of time; write one as '90s', '1h 30m', '2 days'"),
        ({"backoff": -1}, "backoff: must be a length of time of 0 or more"),
        ({"backoff": float("nan")}, "backoff: must be a length of time of 0 or more"),
        ({"claim_after": 0}, "claim_after: must be more than 0"),
        ({"taken_queue": ""}, "taken_queue: must not be empty"),
        ({"taken_queue": "in"}, "dead_queue: input_queue, taken_queue and dead_queue must be three different keys"),
        (
            {"taken_queue": "in/dead"},
            "dead_queue: input_queue, taken_queue and dead_queue must be three different keys",
        ),
        (
            {"dead_queue": "in/taken"},
            "dead_queue: input_queue, taken_queue and dead_queue must be three different keys",
        ),
        ({"redis": {"uri": "x"}}, "redis.uri: is unknown; did you mean 'url'?"),
    ],
)
def test_faults_of_watchers(watcher: dict[str, Any], fault: str) -> None:
    assert faults(file(**watcher)) == [f"rules.json, watcher 'in', field {fault}"]


@pytest.mark.parametrize("queue", [{}, {"input_queue": ""}])
@pytest.mark.parametrize("source", ["list", "stream"])
def test_a_watcher_without_its_queue(queue: dict[str, str], source: str) -> None:
    assert faults({"watchers": [{"source": source, "rules": [RULE], **queue}]}) == [
        "rules.json, watcher 1, field input_queue: is missing: the list or stream to watch"
    ]


def test_two_watchers_with_one_taken_queue() -> None:
    watcher = file()["watchers"][0]
    assert faults({"watchers": [watcher, {**watcher, "input_queue": "b", "taken_queue": "in/taken"}, watcher]}) == [
        "rules.json, watcher 'b', field taken_queue: is that of watcher 1: give each its own",
        "rules.json, watcher 'in', field taken_queue: is that of watcher 1: give each its own",
    ]
    validated({"watchers": [watcher, {**watcher, "redis": {"url": "redis://10.0.0.7/"}}]})


def test_a_dead_list_is_of_one_input() -> None:
    """Who revives a dead event must know where to; watchers of one queue may share it, and those of two Redises."""
    same = {"redis": {"url": "redis://other/"}, "rules": [RULE], "dead_queue": "dead"}
    watchers = [
        {"input_queue": "a", "rules": [RULE], "dead_queue": "dead"},
        {"input_queue": "a", "rules": [RULE], "dead_queue": "dead", "taken_queue": "b"},
        {"input_queue": "c", **same},
        {"input_queue": "d", **same},
    ]
    assert faults({"watchers": watchers}) == [
        "rules.json, watcher 'd', field dead_queue: is that of another input_queue: give each its own"
    ]


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ({"on": 5}, "on: must be a text: a regular expression"),
        ({"on": "("}, "on: is no regular expression: missing ), unterminated subpattern at position 0"),
        ({"on": "\\pL"}, "on: \\pL is unknown here: write the characters, as [A-Za-z], or \\w (at character 1)"),
        ({"on": {"done": "["}}, "on: is no regular expression: unterminated character set at position 0"),
        ({"on": {}}, "on.task: is missing"),
        ({"on": {"task": "a", "state": "done"}}, "on.state: must be 'success', 'failure' or 'retry'"),
        ({"on": {"task": "a"}}, 'on: a task and its state need source: "task"'),
        ({"make": 5}, "make: must be an object"),
        ({"make": None}, "make: must be an object"),
        ({"make": []}, "make: must not be empty"),
        ({"make": {}}, "make.queue: is missing"),
        ({"make": [RULE["make"], {}]}, "make.1.queue: is missing"),
        ({"make": {"queue": 5}}, "make.queue: must be a text"),
        ({"make": {"queue": "${"}}, "make.queue: '${' is no variable: write ${name}, or $${ for ${ itself"),
        ({"make": {"queue": "${ib}"}}, "make.queue: ${ib} is unknown; there are id, input_task"),
        ({"make": [RULE["make"], {"queue": "${z.x}"}]}, "make.1.queue: ${z.x} is unknown; there are id, input_task"),
        ({"make": {"queue": "${fields.x}"}}, "make.queue: ${fields.x} is unknown; there are id, input_task"),
        ({"make": {"queue": "${input_tusk}"}}, "make.queue: ${input_tusk} is unknown; did you mean ${input_task}?"),
        ({"make": {"queue": "q", "sets": "s"}}, "make.sets: is unknown; did you mean 'set'?"),
        ({"todo": {"queue": "q"}}, "todo: is another name of make, which is there already"),
        ({"on_regex": "a"}, "on_regex: is another name of on, which is there already"),
        ({"fetch": {"url": 5, "returns": "x"}}, "fetch.url: must be a text"),
        ({"fetch": {**FETCH, "url": "/x"}}, "fetch.url: must begin with http:// or https://"),
        ({"fetch": {**FETCH, "url": "http:///x"}}, "fetch.url: has no host"),
        ({"fetch": {**FETCH, "url": "http://a:b/"}}, "fetch.url: is no address: Invalid port: 'b'"),
        ({"fetch": {**FETCH, "url": "http://a/${ib}"}}, "fetch.url: ${ib} is unknown; there are id, input_task"),
        ({"fetch": {**FETCH, "url": "http://a/${child}"}}, "fetch.url: ${child} is unknown; there are id, input_task"),
        (
            {"fetch": {**FETCH, "returns": "a b"}},
            "fetch.returns: must be a name: letters, digits and _, and no digit first",
        ),
        (
            {"fetch": {**FETCH, "returns": ""}},
            "fetch.returns: must be a name: letters, digits and _, and no digit first",
        ),
        ({"fetch": {**FETCH, "timeout": 0}}, "fetch.timeout: must be more than 0"),
        ({"fetch": {**FETCH, "timeout": "2 days"}}, "fetch.timeout: must be 86400 or less"),
        ({"fetch": {**FETCH, "retries": -1}}, "fetch.retries: must be 0 or more"),
        ({"fetch": {**FETCH, "concurrency": 0}}, "fetch.concurrency: must be 1 or more"),
        ({"fetch": [FETCH, {**FETCH, "size_limit": 0}]}, "fetch.1.size_limit: must be 1 or more"),
        ({"fetch": {**FETCH, "allowed_hosts": "a"}}, "fetch.allowed_hosts: must be a list"),
        ({"fetch": {**FETCH, "allowed_hosts": [5]}}, "fetch.allowed_hosts.0: must be a text: a host"),
        (
            {"fetch": {**FETCH, "allowed_hosts": ["a", "*"]}},
            "fetch.allowed_hosts.1: '*' is no host: write 'api.example.com', '*.example.com', '10.0.0.7:8080' or "
            "'[::1]'",
        ),
        (
            {"fetch": {**FETCH, "url": "http://${id}/"}},
            "fetch.allowed_hosts: must say which hosts an event may name: a variable stands in the host of url",
        ),
        ({"make": {"celery": 5}}, "make.celery: must be a text"),
        ({"make": {"celery": "a", "task": "b"}}, "make.task: does not belong here"),
        ({"make": {"celery": "a", "args": "b"}}, "make.args: must be a list"),
        (
            {"make": {"celery": "a", "args": ["${"]}},
            "make.args: '${' is no variable: write ${name}, or $${ for ${ itself",
        ),
        ({"make": {"celery": "a", "args": [[{"b": "${c}"}]]}}, "make.args: ${c} is unknown; there are id, input_task"),
        ({"make": {"celery": "a", "kwargs": []}}, "make.kwargs: must be an object"),
        (
            {"make": {"celery": "a", "delay": "soon"}},
            "make.delay: 'soon' is no length of time; write one as '90s', '1h 30m', '2 days'",
        ),
        ({"make": {"celery": "a", "delay": True}}, "make.delay: must be a text"),
        (
            {"make": {"celery": "a", "at": "soon"}},
            "make.at: 'soon' is no time: write 2026-01-31T12:00:00+00:00, or seconds since the epoch",
        ),
        ({"make": {"celery": "a", "at": 1, "delay": 1}}, "make.at: cannot stand beside delay: give one of them"),
        ({"make": {"celery": "a", "on_conflict": "x"}}, "make.on_conflict: must be 'error', 'keep' or 'replace'"),
        ({"make": {"celery": "a", "max_wait": 5}}, 'make.max_wait: needs on_conflict: "replace"'),
        ({"make": {"celery": "a", "priority": 256}}, "make.priority: must be 255 or less"),
    ],
)
def test_faults_of_rules(rule: dict[str, Any], fault: str) -> None:
    assert faults(file({**RULE, **rule})) == [f"rules.json, watcher 'in', rule 'treat', field {fault}"]


def test_what_is_nested_without_end() -> None:
    """As an anchor of YAML may be."""
    args: list[Any] = []
    args.append(args)
    assert faults(file({**CELERY, "make": {"celery": "a", "args": args}})) == ["rules.json: is nested too deeply"]


def test_a_rule_without_a_name_is_told_by_its_number() -> None:
    assert faults(file(RULE, {**RULE, "name": 5})) == ["rules.json, watcher 'in', rule 2, field name: must be a text"]


def test_an_expression_where_tasks_are_the_source() -> None:
    assert faults(file(source="task")) == [
        "rules.json, watcher 'in', rule 'treat', field on: an expression needs source: \"list\" or \"stream\""
    ]


def test_a_fetch_knows_the_answers_before_its_own_only() -> None:
    """Those of one name come together, in the place of the first."""
    first, second = {"url": "http://a/", "returns": "a"}, {"url": "http://b/${a.x}", "returns": "b"}
    validated(file({**RULE, "fetch": [first, second, {"url": "http://c/${b.x}", "returns": "c"}]}))
    assert faults(file({**RULE, "fetch": [second, first]})) == [
        "rules.json, watcher 'in', rule 'treat', field fetch.0.url: ${a.x} is unknown; there are id, input_task"
    ]
    assert faults(file({**RULE, "fetch": [first, second, {"url": "http://c/${b.x}", "returns": "a"}]})) == [
        "rules.json, watcher 'in', rule 'treat', field fetch.2.url: ${b.x} is unknown; there are id, input_task"
    ]


def test_the_names_are_those_of_the_file() -> None:
    rule = {
        "on_regex": "a",
        "todo": [{"queue": "q"}, {"queue": "${x}"}],
        "fetchers": {"url": "http://a/${y}", "returns": "r"},
    }
    assert faults(file(rule)) == [
        "rules.json, watcher 'in', rule 1, field fetchers.url: ${y} is unknown; there are input_task",
        "rules.json, watcher 'in', rule 1, field todo.1.queue: ${x} is unknown; there are input_task, r",
    ]


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    data = {
        "redis": {},
        "listener": "x",
        "watchers": [
            {
                "input_queue": "a",
                "max_attempts": 0,
                "rules": [
                    {"name": "1", "on": "[", "make": {"queue": "q"}},
                    {"name": "2", "on": "x", "make": {"queue": "${y}", "task": "${z}"}},
                    {"on": "x", "make": [{"set": "s"}, {"celery": "a", "delay": "1s", "at": 1, "priority": -1}]},
                    "rule",
                ],
            },
            {"rules": [RULE]},
            {"input_queue": "b", "taken_queue": "t", "rules": [RULE]},
            {"input_queue": "c", "taken_queue": "t", "rules": [RULE]},
        ],
    }
    assert faults(data) == [
        "rules.json, field listener: is unknown; did you mean 'listener_channel'?",
        "rules.json, watcher 'a', field max_attempts: must be 1 or more",
        "rules.json, watcher 'a', rule '1', field on: is no regular expression: unterminated character set at "
        "position 0",
        "rules.json, watcher 'a', rule '2', field make.task: ${z} is unknown; there are input_task",
        "rules.json, watcher 'a', rule '2', field make.queue: ${y} is unknown; there are input_task",
        "rules.json, watcher 'a', rule 3, field make.0.queue: is missing",
        "rules.json, watcher 'a', rule 3, field make.1.at: cannot stand beside delay: give one of them",
        "rules.json, watcher 'a', rule 3, field make.1.priority: must be 0 or more",
        "rules.json, watcher 'a', rule 4: must be an object",
        "rules.json, watcher 2, field input_queue: is missing: the list or stream to watch",
        "rules.json, watcher 'c', field taken_queue: is that of watcher 3: give each its own",
    ]


def test_the_error_is_one_of_ours() -> None:
    with pytest.raises(DelayQError) as caught:
        validated({}, "rules.json")
    assert caught.value.faults == [Fault("rules.json, field watchers", "is missing")]  # type: ignore[attr-defined]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["on", "make", "todo", "fetch", "url", "returns", "celery", "x"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)
PLACES: list[tuple[str | int, ...]] = [
    (),
    ("watchers",),
    ("watchers", 0),
    ("watchers", 0, "rules"),
    ("watchers", 0, "rules", 0),
    *(("watchers", 0, "rules", 0, field) for field in ("name", "on", "fetch", "make", "todo")),
    *(("watchers", 0, field) for field in ("source", "redis", "input_queue", "taken_queue", "backoff", "max_in_work")),
]


@given(JSON, st.sampled_from(PLACES))
def test_whatever_stands_anywhere_is_good_or_told(value: object, place: tuple[str | int, ...]) -> None:
    data: Any = [file()]
    here, last = data, 0
    for part in place:
        here, last = here[last], part  # type: ignore[assignment]
    here[last] = value
    try:
        told = validated(data[0]) and []
    except InvalidRules as error:
        told = [fault.reason for fault in error.faults] or [""]
    assert all(reason and "pydantic" not in reason and "Input" not in reason for reason in told)
