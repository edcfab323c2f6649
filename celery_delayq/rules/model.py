"""Rules as data: what a configuration file may say, validated whole.

The names are Resc's (https://github.com/Canop/resc), and so is what they mean; what Resc does not know is optional.
docs/rules.md is made from these models, by :mod:`~celery_delayq.rules.reference`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import redis
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Strict,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from celery_delayq.errors import shortened
from celery_delayq.lengths import read_length
from celery_delayq.plain_client import client_at

from .expression import compile_expression
from .hosts import AllowedHost, written_origin
from .template import Template

#: Where events of Celery tasks wait, unless a file says so.
_OF_TASKS = "celery/done"


def as_list(value: object) -> object:
    """One, or a list of them."""
    return value if isinstance(value, list) else [value]


def _template(value: object) -> Template:
    if isinstance(value, Template):
        return value
    if isinstance(value, str):
        return Template(value)
    raise ValueError("must be a text")


def _expression(value: object) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    if isinstance(value, str):
        return compile_expression(value)
    raise ValueError("must be a text: a regular expression")


def _allowed_host(value: object) -> AllowedHost:
    if isinstance(value, AllowedHost):
        return value
    if isinstance(value, str):
        return AllowedHost.parse(value)
    raise ValueError("must be a text: a host")


def _seconds(value: object) -> float:
    if isinstance(value, str):
        seconds = read_length(value).total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    else:
        raise ValueError("must be a length of time, as 10, '90s', '1h 30m'")
    if not 0 <= seconds < 10_000_000_000:
        raise ValueError("must be a length of time of 0 or more")
    return float(seconds)


def _of_text(schema_type: str = "string", **more: Any) -> Any:
    return WithJsonSchema({"type": schema_type, **more})


_TEXT = PlainSerializer(lambda value: getattr(value, "text", None) or getattr(value, "pattern", value))

#: A text with variables.
Text = Annotated[Template, BeforeValidator(_template), _TEXT, _of_text(format="template")]

#: A regular expression in Rust's syntax.
Expression = Annotated["re.Pattern[str]", BeforeValidator(_expression), _TEXT, _of_text(format="regex")]

#: Seconds as a number, or a text as ``90s``, ``1h 30m``.
Seconds = Annotated[float, BeforeValidator(_seconds), _of_text(format="length of time")]

#: A host that requests may go to.
Host = Annotated[AllowedHost, BeforeValidator(_allowed_host), _TEXT, _of_text(format="host")]

#: A whole number: neither a text nor a boolean.
Whole = Annotated[int, Strict()]


class Model(BaseModel):
    """What all of them have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, populate_by_name=True)


class Redis(Model):
    """Where queues and sets are."""

    url: Annotated[str, Field(min_length=1)] = Field(
        default="redis://127.0.0.1:6379/", description="`redis://`, `rediss://` (TLS) or `unix://`."
    )

    @field_validator("url")
    @classmethod
    def _can_be(cls, url: str) -> str:
        try:
            client_at(url)  # which connects to nothing
        except (TypeError, redis.RedisError) as error:
            raise ValueError(str(error)) from None
        return url


class TaskEvent(Model):
    """What has become of a Celery task; with `source: task`."""

    task: str = Field(description="The task's name; `*` stands for any part of it.", min_length=1)
    state: Literal["success", "failure", "retry"] = Field(default="success", description="What has become of it.")

    def matches(self, task: str, state: str) -> bool:
        """Whether it speaks of that task in that state."""
        return state == self.state and fnmatchcase(task, self.task)


class Fetch(Model):
    """An HTTP GET whose answer, a JSON object or an array of objects, adds variables."""

    url: Text = Field(description="What is asked; variables in it are quoted as parts of a path or query.")
    returns: str = Field(
        description="The name under which a rule finds the answer: `${name.key}`. An array gives one result for each "
        "object. Of two fetches with one name the results are added up, with two names each is combined with each.",
    )
    timeout: Seconds = Field(
        default=10.0, gt=0, le=86_400, description="For the whole answer, redirects included; a day at most."
    )
    retries: Whole = Field(
        default=2,
        ge=0,
        le=100,
        description="So often a request is made again, after short pauses, if it found no connection, was answered too "
        "late, or with a status that may pass: 408, 425, 429, 5xx. A `Retry-After` is heeded if it is no longer than "
        "`timeout`; else the event is tried again later.",
    )
    concurrency: Whole = Field(default=4, ge=1, le=1000, description="So many requests at a time, in one watcher.")
    size_limit: Whole = Field(default=1_048_576, ge=1, description="Bytes of an answer, unpacked; longer ones fail.")
    allowed_hosts: tuple[Host, ...] = Field(
        default=(),
        description="Hosts, as `api.example.com`, `*.example.com`, `10.0.0.7:8080`, to which requests and redirects "
        "may go besides the scheme, host and port that stand in `url`; without a port: to any.",
        validate_default=True,
    )

    @field_validator("returns")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not value.isidentifier():
            raise ValueError("must be a name: letters, digits and _, and no digit first")
        return value

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: Template) -> Template:
        written_origin(value)
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _names_hosts(cls, value: tuple[AllowedHost, ...], info: ValidationInfo) -> tuple[AllowedHost, ...]:
        if not value and "url" in info.data and written_origin(info.data["url"]) is None:
            raise ValueError("must say which hosts an event may name: a variable stands in the host of url")
        return value


class ListMake(Model):
    """A task that is a text, pushed to a list."""

    name: str | None = Field(default=None, description="For logs and readers.")
    task: Text = Field(default_factory=lambda: Template("${input_task}"), description="The text that is pushed.")
    queue: Text = Field(description="The list whose head it goes to: workers take from the tail.")
    set: Text | None = Field(
        default=None,
        description="A sorted set that remembers the task while it waits: it is not pushed while it is in there. The "
        "worker takes it out.",
    )


class CeleryMake(Model):
    """A Celery task, sent at once or with a delay."""

    name: str | None = Field(default=None, description="For logs and readers.")
    celery: Text = Field(description="The task's name.")
    args: list[Any] = Field(default_factory=list, description="Its arguments: JSON whose texts are templates.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="The same, by name.")
    delay: Text | None = Field(default=None, description="How long it waits, as `10m`.")
    at: Text | None = Field(default=None, description="When it runs: ISO 8601, or seconds since the epoch.")
    task_id: Text | None = Field(default=None, description="An id of one's own.")
    on_conflict: Literal["error", "keep", "replace"] = Field(
        default="keep", description="If a task of this `task_id` waits already; `error` fails the rule."
    )
    max_wait: Seconds | None = Field(default=None, description="With `replace`: it waits no longer than this in all.")
    queue: Text | None = Field(default=None, description="The Celery queue; by default where the app's routes say.")
    priority: Whole | None = Field(default=None, ge=0, le=255, description="Of its message, as Celery has it.")

    @field_validator("delay", "at", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("args", "kwargs")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return parsed(value)

    @field_validator("delay")
    @classmethod
    def _is_delay(cls, value: Template | None) -> Template | None:
        if value is not None and not value.names:
            _seconds(float(value.text) if _is_number(value.text) else value.text)
        return value

    @field_validator("at")
    @classmethod
    def _is_moment(cls, value: Template | None, info: ValidationInfo) -> Template | None:
        if value is not None and info.data.get("delay") is not None:
            raise ValueError("cannot stand beside delay: give one of them")
        if value is not None and not value.names and not _is_number(value.text):
            try:
                datetime.fromisoformat(value.text.replace("Z", "+00:00"))
            except ValueError:
                raise ValueError(
                    f"{shortened(value.text)} is no time: write 2026-01-31T12:00:00+00:00, or seconds since the epoch"
                ) from None
        return value

    @field_validator("max_wait")
    @classmethod
    def _is_of_replace(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("on_conflict", "replace") != "replace":
            raise ValueError('needs on_conflict: "replace"')
        return value


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?", text) is not None


def parsed(value: Any) -> Any:
    """JSON with its texts as templates; keys stay texts."""
    if isinstance(value, str):
        return Template(value)
    if isinstance(value, list):
        return [parsed(item) for item in value]
    if isinstance(value, dict):
        return {key: parsed(item) for key, item in value.items()}
    return value


def templates_in(value: Any) -> Iterator[Template]:
    """All templates in what :func:`parsed` gave."""
    if isinstance(value, Template):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from templates_in(item)


def _kind_of_make(value: Any) -> str:
    if isinstance(value, dict):
        return "<celery>" if "celery" in value else "<list>"
    return "<celery>" if isinstance(value, CeleryMake) else "<list>"


Make = Annotated[
    Annotated[ListMake, Tag("<list>")] | Annotated[CeleryMake, Tag("<celery>")],
    Discriminator(_kind_of_make),
]


def _on(value: Any) -> Any:
    """Older files have ``on: {done: …}``."""
    return value["done"] if isinstance(value, dict) and set(value) == {"done"} else value


def _kind_of_on(value: Any) -> str:
    return "<task>" if isinstance(value, (dict, TaskEvent)) else "<expression>"


class Rule(Model):
    """What is made of the events that it matches."""

    name: str = Field(default="<anonymous rule>", description="For logs, errors and metrics.")
    on: Annotated[
        Annotated[Expression, Tag("<expression>")] | Annotated[TaskEvent, Tag("<task>")],
        Discriminator(_kind_of_on),
        BeforeValidator(_on),
    ] = Field(
        validation_alias=AliasChoices("on", "on_regex"),
        description="A regular expression that is looked for in the event; its named groups are variables. Or, with "
        "`source: task`, which Celery task in which state.",
    )
    fetch: Annotated[list[Fetch], BeforeValidator(as_list)] = Field(
        default_factory=list,
        validation_alias=AliasChoices("fetch", "fetchers"),
        description="One or several requests for more variables.",
    )
    make: Annotated[list[Make], BeforeValidator(as_list), Field(min_length=1)] = Field(
        validation_alias=AliasChoices("make", "makers", "todo"), description="One or several tasks."
    )

    def variables_of(self, fetch: Fetch) -> list[str]:
        """The names under which answers are known when *fetch* is made: those that come before its own."""
        names = list(dict.fromkeys(fetch.returns for fetch in self.fetch))
        return names[: names.index(fetch.returns)]


class Watcher(Model):
    """Takes events from one place and applies rules to each."""

    source: Literal["list", "stream", "task"] = Field(
        default="list",
        description="What `input_queue` is: a Redis list, a Redis stream, or the list of what Celery tasks have done.",
    )
    redis: Redis | None = Field(default=None, description="Its own, if not that of the file.")
    input_queue: str = Field(
        default="",
        validate_default=True,
        description="Where the events come from. It may be left out with `source: task` only: then it is "
        f"`{_OF_TASKS}`.",
    )
    taken_queue: str | None = Field(
        default=None,
        min_length=1,
        description="The list of events in work. Default: `<input_queue>/taken`. Further watchers on one queue take "
        "`<taken_queue>/1` and so on.",
    )
    dead_queue: str | None = Field(
        default=None,
        min_length=1,
        validate_default=True,
        description="The list of events that could not be handled, with their errors. Default: `<input_queue>/dead`.",
    )
    group: str = Field(default="delayq", min_length=1, description="With `source: stream`: the consumer group.")
    field: str = Field(
        default="event",
        min_length=1,
        description="With `source: stream`: the field that `on` is looked for in; each is `${fields.name}`.",
    )
    claim_after: Seconds = Field(
        default=60.0, gt=0, description="With `source: stream`: an entry that nobody finished in so long is taken over."
    )
    max_attempts: Whole = Field(default=5, ge=1, le=1000, description="So often an event is tried.")
    backoff: Seconds = Field(default=1.0, description="Pause after the first failure; it doubles, up to 60 seconds.")
    max_in_work: Whole = Field(
        default=1000, ge=1, le=100_000, description="Events that one watcher holds at a time; then it takes no more."
    )
    rules: list[Rule] = Field(min_length=1, description="All that match an event are applied to it, in this order.")

    @property
    def taken(self) -> str:
        """The list of events in work."""
        return self.taken_queue or f"{self.input_queue}/taken"

    @property
    def dead(self) -> str:
        """The list of events that could not be handled."""
        return self.dead_queue or f"{self.input_queue}/dead"

    @field_validator("input_queue")
    @classmethod
    def _is_there(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("source", "task") != "task":
            raise ValueError("is missing: the list or stream to watch")
        return value or _OF_TASKS

    @field_validator("dead_queue")
    @classmethod
    def _differs(cls, value: str | None, info: ValidationInfo) -> str | None:
        queue = info.data.get("input_queue", "")
        if len({queue, info.data.get("taken_queue") or f"{queue}/taken", value or f"{queue}/dead"}) < 3:
            raise ValueError("input_queue, taken_queue and dead_queue must be three different keys")
        return value


class Rules(Model):
    """A whole file."""

    redis: Redis = Field(default_factory=Redis, description="Where the queues of all watchers are.")
    listener_channel: str | None = Field(
        default=None, min_length=1, description="The channel on which TRIGGER, DONE and DEAD lines are published."
    )
    task_set: str | None = Field(default=None, description="Of Resc before 0.2: ignored, with a warning.")
    watchers: list[Watcher] = Field(min_length=1, description="Each runs in a thread of its own.")

    def url_of(self, watcher: Watcher) -> str:
        """The Redis of that watcher."""
        return (watcher.redis or self.redis).url


__all__ = ["CeleryMake", "Fetch", "ListMake", "Make", "Redis", "Rule", "Rules", "TaskEvent", "Watcher"]
