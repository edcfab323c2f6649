"""The doctor: looks at what can go wrong around waiting tasks, and says what to do about it.

A check is a function that takes what it needs and gives what it finds (``server``, ``waiting``, ``fleet``); the patient
looks up what they need; the list below says which check needs what.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError, ResponseError

from celery_delayq import broker
from celery_delayq.errors import ImproperlyConfigured, Outdated
from celery_delayq.version import __version__

from . import fleet, server, waiting
from .finding import Finding, Level, broken, ok, unknown, warning
from .patient import Patient, Server

__all__ = ["CHECKS", "Check", "Finding", "Level", "Patient", "examine"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what it looks at.
        look: what it finds about a patient. May raise anything.
        cheap: it takes a few commands to Redis and asks no worker: each worker makes it at its start.
        vital: where it finds something broken, there is nothing more to look at.
    """

    name: str
    look: Callable[[Patient], Iterable[Finding]]
    cheap: bool = False
    vital: bool = False


def _reachable(patient: Patient) -> Iterable[Finding]:
    try:
        _ = patient.store  # to connect is to ask it for a PING
    except ResponseError as error:
        yield broken(f"Redis answers, and refuses: {error}", "do what it says; its log, disk and memory tell more")
    except (ImproperlyConfigured, Outdated) as error:
        yield broken(*str(error).split(": ", 1))
    else:
        yield ok(patient.home.url)


def _broker(patient: Patient) -> Iterable[Finding]:
    if not patient.home.is_relayed:
        yield ok("the same Redis")
        return
    connection = patient.app.connection_for_write()
    where = broker.url_of(connection)
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=patient.reply_timeout)
    except (OperationalError, *connection.connection_errors) as error:
        fix = "what is due waits meanwhile; is it running, and are broker_url, its password and the network right?"
        yield broken(f"{where} cannot be reached: {type(error).__name__}: {error}", fix)
    else:
        yield ok(f"{where}, to which what is due is published")


def _of_each(look: Callable[[Server, int], Iterable[Finding]]) -> Callable[[Patient], Iterable[Finding]]:
    """What *look* finds of the first shard's server; and of those of other shards, what is not as it should be.

    Args:
        look: is given the server, and how many replicas puts wait for.
    """

    def of_each(patient: Patient) -> Iterable[Finding]:
        first, *others = patient.servers
        yield from look(first, patient.settings.wait_replicas)
        for other in others:
            for finding in look(other, patient.settings.wait_replicas):
                if finding.level is not Level.OK:
                    yield replace(finding, text=f"{other.name}: {finding.text}")

    return of_each


CHECKS: tuple[Check, ...] = (
    Check("reachable", _reachable, cheap=True, vital=True),
    Check("broker", _broker),
    Check("version", _of_each(lambda it, _: server.version(it.info)), cheap=True),
    Check("role", _of_each(lambda it, _: server.role(it.info)), cheap=True),
    Check("eviction", _of_each(lambda it, _: server.eviction(it.info)), cheap=True),
    Check("memory", _of_each(lambda it, _: server.memory(it.info)), cheap=True),
    Check("persistence", _of_each(lambda it, _: server.persistence(it.info, it.config)), cheap=True),
    Check("replicas", _of_each(lambda it, wanted: server.replicas(it.info, it.config, wanted)), cheap=True),
    Check("rights", lambda it: server.rights(it.refused, it.user), cheap=True),
    Check("clock", lambda it: server.clock(it.skew), cheap=True),
    Check(
        "dispatchers",
        lambda it: fleet.dispatchers(
            it.listeners,
            it.beat_age,
            it.answers,
            sum(load.waiting for load in it.loads.values()),
            it.settings.max_poll_interval,
            wanted=it.settings.dispatch,
        ),
    ),
    Check("workers", lambda it: fleet.workers(it.queues, it.remote_control)),
    Check("versions", lambda it: fleet.versions(__version__, it.answers, it.queues)),
    Check("overdue", lambda it: waiting.overdue(it.loads, it.now_us, it.settings.ready_limit or {})),
    Check("paused", lambda it: waiting.paused(it.loads)),
    Check("orphans", lambda it: waiting.orphans(it.loads, it.sizes, it.first.keys.totals)),
    Check("leases", lambda it: waiting.leases(it.loads, it.expiries, it.now_us)),
    Check("queues", lambda it: fleet.queues(it.loads, it.queues, it.task_queues, it.remote_control)),
    Check("visibility", lambda it: fleet.visibility(it.visibility_timeout, it.active, it.late_limits, it.now)),
)


def examine(patient: Patient, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Make *checks*, one after the other. Never raises: one that fails says so, and the others are made."""
    found: list[Finding] = []
    for check in checks:
        mine = [finding.of(check.name) for finding in _made(check, patient)]
        found += mine
        if check.vital and any(finding.level is Level.BROKEN for finding in mine):
            break
    return found


def _made(check: Check, patient: Patient) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check.look(patient))
    except NoPermissionError as error:
        found.append(unknown(f"not allowed to look: {error}", f"allow it to user {patient.user}, or ask who may"))
    except (redis.ConnectionError, redis.TimeoutError, OperationalError, OSError) as error:
        text = f"Redis cannot be reached: {type(error).__name__}: {error}"
        setting = patient.home.setting
        found.append(broken(text, f"is it running, and are {setting}, its password and the network right?"))
    except Exception as error:  # whatever a check comes up with, the others must be made
        logger.debug("delayq doctor: check %s failed", check.name, exc_info=True)
        found.append(warning(f"the check itself failed: {type(error).__name__}: {error}", "report it, please"))
    return found
