"""What Resc's published examples say (https://github.com/Canop/resc, ``examples`` and ``demo``), as data, does here
what its README says of it.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.rules import load, validated
from celery_delayq.rules.running import Runner
from tests.http_server import Answering, http_server

from .rules import listening
from .worker import wait_for

ONE_REDIS = True

HERE = {"url": "redis://127.0.0.1/"}
ACQUIRED = r"^acq/(?P<process_id>\w+)/(?P<product_id>\w+)$"
TREATED = r"^trt/(?P<process_id>\w+)/(?P<product_id>\w{16})$"
CHILDREN = "http://localhost:8080/eyeron/pub/products/${product_id}/direct-childs"
TASK = "trt/${process_id}/${product_id}"

#: Of the last version.
SIMPLE = {
    "redis": HERE,
    "listener_channel": "events",
    "watchers": [
        {
            "input_queue": "global/done",
            "taken_queue": "global/taken",
            "rules": [
                {
                    "name": "TRT computation on data acquisition",
                    "on": ACQUIRED,
                    "make": {
                        "task": TASK,
                        "queue": "trt/${process_id}/todo-queue",
                        "set": "trt/${process_id}/todo-set",
                    },
                }
            ],
        }
    ],
}

#: Two watchers, one of which asks a web service.
COMPLEX = {
    "redis": HERE,
    "task_set": "global/todo",
    "listener_channel": "events",
    "watchers": [
        {
            "input_queue": "global/done",
            "taken_queue": "global/taken",
            "rules": [
                {
                    "name": "TRT computation on data acquisition",
                    "on": r"^acq/(?P<process_id>\w+)/(?P<product_id>\d+)$",
                    "make": {"task": TASK, "queue": "trt/${process_id}/todo"},
                },
                {
                    "name": "TRT propagation to children : switch queue",
                    "on": TREATED,
                    "make": {"queue": "global/to-propagate"},
                },
            ],
        },
        {
            "input_queue": "global/to-propagate",
            "rules": [
                {
                    "name": "TRT propagation to children : make child tasks",
                    "on": TREATED,
                    "fetch": [{"url": CHILDREN, "returns": "child"}],
                    "make": {
                        "task": "trt/${child.processId}/${child.productId}",
                        "queue": "trt/${child.processId}/todo",
                    },
                }
            ],
        },
    ],
}

#: An older one: each watcher has its Redis; ``on.done`` and ``todo``.
OLD = {
    "watchers": [
        {
            "redis": HERE,
            "input_queue": "global/done",
            "taken_queue": "global/taken",
            "rules": [
                {
                    "name": "TRT computation on data acquisition",
                    "on": {"done": r"^acq/(?P<process_id>\d+)/(?P<product_id>\d+)$"},
                    "todo": {"task": TASK, "queue": "trt/${process_id}/todo", "set": "products/${product_id}/todo"},
                }
            ],
        }
    ]
}


@pytest.mark.parametrize("example", [SIMPLE, COMPLEX, OLD], ids=["simple", "complex", "old"])
@pytest.mark.parametrize("ending", ["json", "hjson"])
def test_they_can_be_read(tmp_path: Path, example: dict[str, Any], ending: str) -> None:
    """JSON is Hjson."""
    path = tmp_path / f"conf.{ending}"
    path.write_text(json.dumps(example, indent="\t").replace("\n", "\r\n"))
    assert load(path) == validated(example)


def run_at(server: RedisServer, example: dict[str, Any], port: int = 0) -> Runner:
    """The example, on the test's servers."""
    text = json.dumps(copy.deepcopy(example)).replace(HERE["url"], server.url()).replace(":8080/", f":{port}/")
    runner = Runner([validated(json.loads(text))])
    runner.start()
    return runner


def test_the_simple_example(server: RedisServer, client: redis.Redis) -> None:
    """Three events, three tasks; of one that waits, no second one."""
    with listening(client, "events") as read:
        runner = run_at(server, SIMPLE)
        try:
            client.lpush("global/done", "acq/plantA/1", "acq/plantA/2", "acq/plantA/3", "acq/plantA/2")
            wait_for(lambda: runner.counts["global/done"].doubles == 1, "all are done")
        finally:
            runner.stop()
        lines = read()
    assert client.lrange("trt/plantA/todo-queue", 0, -1) == [b"trt/plantA/3", b"trt/plantA/2", b"trt/plantA/1"]
    assert client.zcard("trt/plantA/todo-set") == 3
    assert lines[0] == "global/taken TRIGGER acq/plantA/1 -> trt/plantA/1"
    assert len(lines) == 3 + 4


def test_the_complex_example(server: RedisServer, client: redis.Redis) -> None:
    """A treated product whose children are asked for: one task for each, by way of another queue."""
    asked = []

    def answer(request: Answering) -> None:
        asked.append(request.path)
        request.send_json(
            [
                {"processId": 634876914, "productId": "5ab7e7dc00000040"},
                {"processId": 634876914, "productId": "5ab7ebe800000040"},
            ]
        )

    with http_server() as web:
        web.answer = answer
        runner = run_at(server, COMPLEX, web.server_port)
        try:
            client.lpush("global/done", "acq/123/456", "trt/123/5ab7342600000040", "trt/123/456")
            wait_for(lambda: runner.counts["global/to-propagate"].made == 2, "the children are there")
            wait_for(lambda: runner.counts["global/done"].in_work == 0, "all are done")
        finally:
            runner.stop()
    assert asked == ["/eyeron/pub/products/5ab7342600000040/direct-childs"]
    assert client.lrange("trt/123/todo", 0, -1) == [b"trt/123/456"]
    assert Counter(client.lrange("trt/634876914/todo", 0, -1)) == {
        b"trt/634876914/5ab7e7dc00000040": 1,
        b"trt/634876914/5ab7ebe800000040": 1,
    }


def test_the_old_example(server: RedisServer, client: redis.Redis) -> None:
    runner = run_at(server, OLD)
    try:
        client.lpush("global/done", "acq/123/456", "acq/plant/456")
        wait_for(lambda: runner.counts["global/done"].events == 2, "both are taken")
        wait_for(lambda: runner.counts["global/done"].in_work == 0, "all are done")
    finally:
        runner.stop()
    assert client.lrange("trt/123/todo", 0, -1) == [b"trt/123/456"]
    assert client.zcard("products/456/todo") == 1
