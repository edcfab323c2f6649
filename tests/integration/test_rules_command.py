"""``celery-delayq rules``: check, test, dead, run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import redis
from click.testing import CliRunner, Result

from celery_delayq.cli import main
from celery_delayq.embedded import RedisServer
from tests.http_server import http_server

from .programs import Programs
from .worker import wait_for

#: What differs from one Redis to the next is tested in tests/lua.
ONE_REDIS = True

STORY = r"""
# as Resc has them, and what it has not
{
    redis: { url: "URL" }
    listener_channel: events
    watchers: [
        {
            input_queue: global/done
            rules: [
                {
                    name: treat
                    on: "^acq/(?P<plant>\\w+)/(?P<product>\\d+)$"
                    make: [
                        { task: "trt/${plant}/${product}", queue: "trt/${plant}/todo", set: "trt/${plant}/set" }
                        {
                            celery: "proj.treat", args: ["${plant}", "${product:int}", 3]
                            kwargs: { by: "${input_task}" }
                            delay: "10m", task_id: "trt-${product}", on_conflict: "replace", max_wait: "1h", priority: 3
                        }
                    ]
                }
                {
                    name: children
                    on: "^trt/(?P<product>.+)$"
                    fetch: [
                        { url: "http://127.0.0.1:1/products/${product}", returns: "child" }
                        { url: "http://127.0.0.1:1/plants/${child.plant}?of=${product}", returns: "plant" }
                    ]
                    make: [
                        { task: "trt/${child.id}/${plant.name}", queue: "todo/${child.id}" }
                        { celery: "proj.treat", args: ["${child.weight:float}", "${child:json}"], at: "${child.due}" }
                    ]
                }
            ]
        }
        {
            input_queue: "entries", source: "stream", field: "said"
            rules: [ { on: "^acq/", make: { task: "${fields.by}", queue: "out" } } ]
        }
        {
            source: task
            rules: [
                {
                    name: report
                    on: { task: "proj.*", state: "success" }
                    make: { celery: "proj.report", args: ["${result.id:int}", "${args.0}"], delay: "${result.wait}" }
                }
            ]
        }
    ]
}
"""


def run(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["rules", *words])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def story(tmp_path: Path) -> str:
    """A file with all kinds of watchers."""
    path = tmp_path / "story.hjson"
    path.write_text(STORY.replace("URL", "redis://127.0.0.1:1/"))
    return str(path)


def test_check(story: str) -> None:
    """One line for each file, or one object."""
    assert run("check", story, story).stdout == f"{story}: 3 watchers, 4 rules\n" * 2
    assert json.loads(run("check", "--json", story).stdout) == {
        "file": story,
        "watchers": 3,
        "rules": 4,
        "faults": [],
    }


def test_check_tells_all_faults_of_all_files(story: str, tmp_path: Path) -> None:
    """At once, each with its place; the files that are right are told, too."""
    faulty, none = tmp_path / "faulty.hjson", tmp_path / "none.json"
    faulty.write_text(
        Path(story).read_text().replace("${plant}/todo", "${plan}/todo").replace("max_wait", "max_weight")
    )
    done = run("check", str(faulty), story, str(none), code=2)
    assert done.stdout == f"{story}: 3 watchers, 4 rules\n"
    lines = done.stderr.splitlines()
    assert any("field make.1.max_weight: is unknown; did you mean 'max_wait'?" in line for line in lines)
    assert lines[-1] == f"Error: {none}: No such file or directory"

    faulty.write_text(Path(story).read_text().replace("${plant}/todo", "${plan}/todo").replace("${fields.by}", "${by}"))
    objects = [json.loads(line) for line in run("check", "--json", str(faulty), story, code=2).stdout.splitlines()]
    assert [len(one["faults"]) for one in objects] == [2, 0]
    assert objects[0]["faults"][0] == {
        "place": f"{faulty}, watcher 'global/done', rule 'treat', field make.0.queue",
        "reason": "${plan} is unknown; did you mean ${plant}?",
    }


def test_a_faulty_file_ends_every_command(tmp_path: Path) -> None:
    """With status 2, and all that is wrong."""
    path = tmp_path / "faulty.json"
    path.write_text('{"watchers": [{"rules": []}], "x": "\\u001b[31m"}')
    for command in (["check"], ["test", "-e", "x"], ["dead"], ["run"]):
        done = run(*command, str(path), code=2)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) >= 2
        assert done.stderr.replace("\n", "").isprintable()


def test_test(story: str) -> None:
    """Which rules match, with which variables, and what would be made; a request is shown, and what depends on its
    answer is left.
    """
    assert run("test", story, "-e", "acq/A/7", "-e", "trt/a b/x", code=1).stdout.splitlines() == [
        "acq/A/7",
        "  global/done: treat",
        '    ${plant} = "A"',
        '    ${product} = "7"',
        "    push 'trt/A/7' to 'trt/A/todo', unless it is in 'trt/A/set'",
        "    send proj.treat('A', 7, 3, by='acq/A/7') in 10m, task_id 'trt-7', on_conflict 'replace', "
        "max_wait 3600.0, priority 3",
        "  entries: <anonymous rule>",
        '    ${fields} = {"said": "acq/A/7"}',
        "    fails: ${fields.by} has no value",
        "trt/a b/x",
        "  global/done: children",
        '    ${product} = "a b/x"',
        "    would fetch http://127.0.0.1:1/products/a%20b%2Fx",
        "    would fetch http://127.0.0.1:1/plants/${child.plant}?of=a%20b%2Fx",
        "    push 'trt/${child.id}/${plant.name}' to 'todo/${child.id}'",
        "    send proj.treat('${child.weight:float}', '${child:json}') at ${child.due}",
    ]


def test_test_as_objects(story: str) -> None:
    """An object for each rule that matches; nothing, and status 1, where none does."""
    (outcome,) = map(
        json.loads, run("test", story, "--json", "-e", "acq/A/7", "--watcher", "global/done").stdout.splitlines()
    )
    assert outcome == {
        "event": "acq/A/7",
        "watcher": "global/done",
        "rule": "treat",
        "variables": {"plant": "A", "product": "7"},
        "would_fetch": [],
        "makes": [
            {"push": "trt/A/7", "queue": "trt/A/todo", "set": "trt/A/set"},
            {
                "celery": "proj.treat",
                "args": ["A", 7, 3],
                "kwargs": {"by": "acq/A/7"},
                "delay": "10m",
                "task_id": "trt-7",
                "max_wait": 3600.0,
                "priority": 3,
                "on_conflict": "replace",
            },
        ],
    }
    assert run("test", story, "--json", "-e", "nothing", "--watcher", "global/done", code=1).stdout == ""
    assert run("test", story, "-e", "nothing", "--watcher", "entries", code=1).stdout == "nothing\n  no rule matches\n"
    assert (
        "there are global/done, entries, celery/done" in run("test", story, "-e", "x", "--watcher", "no", code=2).stderr
    )


def test_test_of_a_stream_and_of_tasks(story: str) -> None:
    """All fields of an entry as an object; a task as the worker would write it."""
    entry, task = (
        '{"said": "acq/1", "by": "Ada"}',
        '{"task": "proj.x", "state": "success", "args": [5], "result": {"id": "8", "wait": 3}}',
    )
    assert "push 'Ada' to 'out'" in run("test", story, "--watcher", "entries", "-e", entry).stdout
    assert "send proj.report(8, '5') in 3\n" in run("test", story, "--watcher", "celery/done", "-e", task).stdout
    run("test", story, "--watcher", "celery/done", "-e", task.replace("success", "failure"), code=1)
    assert (
        "is no event of a Celery task" in run("test", story, "--watcher", "celery/done", "-e", "acq/1", code=2).stderr
    )


def test_test_that_fetches(tmp_path: Path) -> None:
    """Each request is sent, and its answer used."""
    path = tmp_path / "fetching.json"
    with http_server() as http:
        http.answer = lambda request: request.send_json([{"id": 7}, {"id": 8}])
        fetch = {"url": f"{http.url}/products/${{product}}", "returns": "child"}
        make = {"task": "trt/${child.id}", "queue": "todo"}
        rule = {"name": "children", "on": "^trt/(?P<product>.+)$", "fetch": fetch, "make": make}
        path.write_text(json.dumps({"watchers": [{"input_queue": "done", "rules": [rule]}]}))
        run("test", str(path), "-e", "trt/a b")
        assert http.paths == []
        assert run("test", str(path), "-e", "trt/a b", "--fetch").stdout.splitlines() == [
            "trt/a b",
            "  done: children",
            '    ${product} = "a b"',
            f"    fetched {http.url}/products/a%20b",
            "    push 'trt/7' to 'todo'",
            "    push 'trt/8' to 'todo'",
        ]
        assert http.paths == ["/products/a%20b"]
        http.answer = lambda request: request.send("no", 404)
        shown = run("test", str(path), "-e", "trt/a b", "--fetch", code=1).stdout
    assert "    fails: " in shown
    assert "404" in shown


def entry(event: str, **more: Any) -> str:
    return json.dumps(
        {
            "event": event,
            "rule": "treat",
            "error": "it is\nlate",
            "attempts": 5,
            "at": "2026-01-02T03:04:05+00:00",
            **more,
        }
    )


@pytest.fixture
def inside(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def real(server: RedisServer, tmp_path: Path) -> str:
    """The same file, on a real Redis."""
    path = tmp_path / "real.hjson"
    path.write_text(STORY.replace("URL", server.url()))
    return str(path)


def test_dead(real: str, inside: redis.Redis) -> None:
    """The oldest first, of all watchers or of one; what is no entry of ours, too."""
    assert run("dead", real).stderr == "no dead events\n"
    inside.lpush("global/done/dead", entry("acq/A/1"), entry("acq/A/\udcff"), "theirs")
    inside.lpush("entries/dead", entry("acq/2"))
    head, *rows = run("dead", real).stdout.splitlines()
    assert head.split() == ["DIED", "TRIED", "WATCHER", "EVENT", "RULE", "ERROR"]
    assert [row.split()[-7:] for row in rows[:1]] == [
        ["5", "global/done", "acq/A/1", "treat", r"it", "is\\nlate"][-7:]
    ] or rows
    assert [("acq/A/1" in row, r"acq/A/\udcff" in row, "theirs" in row, "acq/2" in row) for row in rows] == [
        (True, False, False, False),
        (False, True, False, False),
        (False, False, True, False),
        (False, False, False, True),
    ]
    shown = run("dead", real, "--limit", "1")
    assert ("acq/A/1" in shown.stdout, shown.stderr) == (True, "… more: --limit 0 shows all\n")
    objects = [json.loads(line) for line in run("dead", real, "--json", "--watcher", "global/done").stdout.splitlines()]
    assert objects[0] == {"watcher": "global/done", **json.loads(entry("acq/A/1"))}
    assert objects[2] == {"watcher": "global/done", "entry": "theirs"}


def test_revive(real: str, inside: redis.Redis) -> None:
    """Into the input that each came from, byte by byte; so many, or all; what is no entry of ours stays."""
    assert run("dead", real, "--revive", code=1).stderr == "no dead events\n"
    inside.lpush(
        "global/done/dead",
        "theirs",
        entry("no bytes \ud800"),
        entry("acq/A/\udcff"),
        *(entry(f"acq/A/{n}") for n in range(1200)),
    )
    inside.lpush("entries/dead", entry("acq/2"), entry("acq/3", fields={"said": "acq/3", "by": "Ada"}))

    first = run("dead", real, "--revive", "--limit", "2", code=1)
    assert (first.stdout, first.stderr.count("left, as")) == ("2 events revived\n", 2)
    assert inside.lrange("global/done", 0, -1) == [b"acq/A/0", b"acq/A/\xff"]
    rest = run("dead", real, "--revive", "--json", code=1).stdout.splitlines()
    assert len(rest) == 1201
    assert json.loads(rest[-1]) == {"watcher": "entries", "event": "acq/3", "revived": True}
    assert inside.lrange("global/done", 0, -1) == [*(b"acq/A/%d" % n for n in reversed(range(1200))), b"acq/A/\xff"]
    assert [fields for _, fields in inside.xrange("entries")] == [
        {b"said": b"acq/2"},
        {b"said": b"acq/3", b"by": b"Ada"},
    ]
    assert inside.lrange("global/done/dead", 0, -1) == [entry("no bytes \ud800").encode(), b"theirs"]
    assert inside.llen("entries/dead") == 0


def test_a_redis_that_is_away(story: str) -> None:
    """One line, and status 1."""
    done = run("dead", story, code=1)
    assert done.stderr.startswith("Error: Redis: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_extra(story: str) -> None:
    """The other commands are there; those of rules say what to install."""
    program = """
import sys
sys.modules["pydantic"] = None
from celery_delayq.cli import main
main(sys.argv[1:])
"""
    shown = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    assert "dispatch-zset" in shown.stdout
    done = subprocess.run(
        [sys.executable, "-c", program, "rules", "check", story], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'pip install "celery-delayq[rules]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


LISTS = """
{
    redis: { url: "URL" }
    watchers: [
        {
            input_queue: global/done
            max_attempts: 1
            rules: [
                {
                    name: treat
                    on: "^acq/(?P<product>\\\\w+)$"
                    make: { task: "trt/${product}", queue: "todo", set: "queued" }
                }
                { name: "count", on: "^acq/(?P<n>.*)$", make: { task: "${n:int}", queue: "numbers" } }
            ]
        }
    ]
}
"""


@pytest.fixture
def lists(server: RedisServer, tmp_path: Path) -> str:
    """A file that needs no Celery."""
    path = tmp_path / "lists.hjson"
    path.write_text(LISTS.replace("URL", server.url()))
    return str(path)


@pytest.fixture
def programs(server: RedisServer, tmp_path: Path) -> Programs:
    return Programs(tmp_path, server.url(), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run(lists: str, inside: redis.Redis, programs: Programs, number: signal.Signals) -> None:
    """Until a signal comes; it tells what is wrong, and the total."""
    with programs.background("celery-delayq", "rules", "run", lists) as program:
        inside.lpush("global/done", "acq/7", "acq/7", "nothing", "acq/x\x1b[31m")
        wait_for(lambda: inside.llen("global/done/dead") == 1, "all is handled")
        assert program.end(number) == 0
        *told, total = program.lines
        assert total == "events 4, tasks made 3, doubles avoided 1, failures 1, dead 1"
        assert len(told) == 1
        assert told[0].isprintable()
        assert "treat" in told[0] or "count" in told[0]
    assert inside.lrange("todo", 0, -1) == [b"trt/7"]
    assert inside.lrange("numbers", 0, -1) == [b"7", b"7"]


@pytest.mark.parametrize(
    ("options", "infos", "debugs"),
    [(["-v"], True, False), (["-vv"], True, True), (["--log-level", "debug"], True, True), (["-q"], False, False)],
)
def test_how_much_it_tells(
    lists: str, inside: redis.Redis, programs: Programs, options: list[str], infos: bool, debugs: bool
) -> None:
    """What comes and goes, and which rules match, in Resc's words."""
    with programs.background("celery-delayq", "rules", "run", lists, *options) as program:
        inside.lpush("global/done", "acq/7")
        wait_for(lambda: inside.llen("todo") == 1, "it is handled")
        assert program.end() == 0
        assert bool(program.said('<- got "acq/7" in queue')) == infos
        assert bool(program.said("  -> 'trt/7' pushed to queue 'todo'")) == infos
        assert bool(program.said("2 matching rule(s)")) == debugs
        assert (program.lines == []) == (options == ["-q"])


def test_metrics(lists: str, inside: redis.Redis, programs: Programs) -> None:
    """What its watchers have done, for Prometheus; an address that is taken ends it."""
    with programs.background("celery-delayq", "rules", "run", lists, "-v", "--metrics-port", "0") as program:
        program.await_lines("metrics at http://127.0.0.1:")
        url = program.said("metrics at ")[0].split()[-1]
        inside.lpush("global/done", "acq/7", "acq/7")
        wait_for(lambda: 'delayq_rules_made_total{queue="global/done"} 3.0' in page(url), "it is counted")
        assert 'delayq_rules_doubles_total{queue="global/done"} 1.0' in page(url)
        port = url.split(":")[2].partition("/")[0]
        refused = programs.run("celery-delayq", "rules", "run", lists, "--metrics-port", port, code=1)
        assert refused.startswith(f"Error: metrics cannot be told at 127.0.0.1:{port}: ")
        assert program.end() == 0


def page(url: str) -> str:
    with urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def test_it_cannot_go_on(lists: str, inside: redis.Redis, programs: Programs) -> None:
    """A queue that is none: it says so, and ends with status 1."""
    inside.set("global/done", "theirs")
    assert "global/done is a string" in programs.run("celery-delayq", "rules", "run", lists, code=1)


def test_celery_tasks_need_an_app(story: str, tmp_path: Path, programs: Programs) -> None:
    """Who has named none, or none that is there, is told so before anything begins."""
    path = tmp_path / "celery.hjson"
    path.write_text(Path(story).read_text())
    assert "(-A)" in programs.run("celery-delayq", "rules", "run", str(path), code=2)
    assert "no_such_app" in programs.run("celery-delayq", "rules", "run", str(path), "-A", "no_such_app", code=2)
