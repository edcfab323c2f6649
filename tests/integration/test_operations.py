"""docs/operations.md keeps its word: its commands run, its unit and its manifest are what they should be."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery

from celery_delayq.command import delayq
from celery_delayq.embedded import RedisServer

from .command import run
from .diagnosis import acl_user, everything, levels
from .worker import ROOT, Project, wait_for

#: What the commands ask of Redis is tested on every version elsewhere; the ACL line below, too.
ONE_REDIS = True

PAGE = (ROOT / "docs" / "operations.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands(*words: str) -> list[list[str]]:
    """All command lines that begin so, in code blocks and in the text, without these words."""
    lines = "".join(blocks("sh")).splitlines() + re.findall(r"`(celery [^`]+)`", PAGE.replace("\n", " "))
    split = [shlex.split(line) for line in lines]
    return [line[len(words) :] for line in split if line[: len(words)] == list(words)]


def test_what_it_tells_to_type_into_celery_works(app: Celery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each line with ``delayq`` on an app in which something waits. 1 is an answer, too, as of a filter that meant
    nothing; 2 would be wrong use.
    """
    lines = commands("celery", "-A", "proj", "delayq")
    assert len(lines) > 25
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        app.send_task("shop.remind", queue="mail", countdown=86_400 * number, headers={"batch": "b1"})
    for line in lines:
        if line[0] == "dispatch":  # for these see test_command_dispatch.py; here, that there are such options
            with delayq.commands["dispatch"].make_context("dispatch", line[1:]):
                continue
        said = run(app, *line)
        assert said.code in ({0, 1, 2} if line[0] == "doctor" else {0, 1}), (line, said)
        assert "No such" not in said.err
        assert "Usage" not in said.err


def test_what_it_tells_to_type_into_redis_works(own_server: RedisServer) -> None:
    """Each line with ``redis-cli``."""
    lines = commands("redis-cli")
    assert len(lines) > 8
    with own_server.client() as client:
        for line in lines:
            if line[:2] != ["CONFIG", "REWRITE"]:  # which needs a server with a configuration file
                client.execute_command(*line)


def test_the_user_may_do_all_that_is_needed(server: RedisServer, make_app: Any) -> None:
    """The ACL line as it stands there: all verbs, the doctor, a worker, its remote control, a result."""
    (rule,) = commands("redis-cli", "ACL", "SETUSER", "shop")
    rule = [word for word in rule if not word.startswith(">")]
    with ExitStack() as stack:
        app = stack.enter_context(acl_user(server, make_app, *rule, ">secret"))
        store = app.delayq.connect()
        stack.callback(store.close)
        everything(store)
        with server.client() as client:
            client.flushall()  # its jobs are no messages
        found = {finding.check: finding for finding in app.delayq.check_up()}
        assert {found[name].level.value for name in ("version", "role", "eviction", "memory", "rights")} == {"ok"}
        assert "not allowed" not in found["persistence"].text

        project = stack.enter_context(Project(app.conf.broker_url, result_backend=app.conf.broker_url))
        worker = stack.enter_context(project.worker("-Q", "celery,mail"))
        worker.await_ready()
        ids = [project.send(countdown=0.2), project.send(queue="mail", priority=3, countdown=0.3), project.send()]
        project.ledger.wait_for(ids)
        wait_for(lambda: project.app.AsyncResult(ids[0]).state == "SUCCESS", "its result is there")
        wait_for(lambda: project.app.control.inspect(timeout=1).ping(), "it answers")
        assert "celery@" in str(project.app.control.inspect(timeout=5)._request("delayq"))
        assert worker.said("NOPERM") == worker.said("forbids") == 0
        assert set(levels(app.delayq.doctor())) <= {"ok", "warning"}


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} here")
    return found


def test_the_systemd_unit(tmp_path: Path) -> None:
    """systemd finds nothing wrong with it, once its program exists."""
    (unit,) = blocks("ini")
    program = re.search(r"^ExecStart=(\S+)", unit, flags=re.MULTILINE)
    assert program
    file = tmp_path / "delayq-dispatch.service"
    file.write_text(unit.replace(program[1], sys.executable))
    done = subprocess.run(
        [needs("systemd-analyze"), "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if file.name in line]
    assert (ours, done.returncode) == ([], 0), done.stderr


def options(words: list[str]) -> dict[str, Any]:
    """What ``delayq dispatch`` makes of these words."""
    start = words.index("dispatch")
    with delayq.commands["dispatch"].make_context("dispatch", words[start + 1 :]) as context:
        return dict(context.params)


def test_the_unit_and_the_manifest_start_what_there_is() -> None:
    """With options that exist; and probes that ask where it listens."""
    (unit,) = blocks("ini")
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, flags=re.MULTILINE)
    assert options(shlex.split(start))["health_port"] == 8011

    deployment, budget = yaml.safe_load_all(blocks("yaml")[0])
    assert (deployment["kind"], budget["kind"]) == ("Deployment", "PodDisruptionBudget")
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["metadata"]["labels"] == budget["spec"]["selector"]["matchLabels"]
    assert budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    (container,) = pod["spec"]["containers"]
    asked = options(container["args"])
    (port,) = container["ports"]
    assert (asked["health_port"], asked["health_host"]) == (port["containerPort"], "0.0.0.0")
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
        # Redis has 0.8 s to connect and 0.8 s to answer before we say that it does not.
        assert container[probe]["timeoutSeconds"] > 1.6


def test_the_age_of_the_health_file(tmp_path: Path) -> None:
    """The probe of it says what it should, of a fresh file, an old one, and none."""
    (line,) = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("test ")]
    file = tmp_path / "healthy"
    line = line.replace("/run/delayq/healthy", str(file))

    def probe() -> int:
        return subprocess.run(["sh", "-c", line], check=False, capture_output=True, timeout=60).returncode

    assert probe() != 0
    file.touch()
    assert probe() == 0
    os.utime(file, (time.time() - 60,) * 2)
    assert probe() != 0
