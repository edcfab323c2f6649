"""The requests of rules: an HTTP GET whose answer adds variables.

What an event says never decides where a request goes: it is quoted into path and query, and each address, redirects'
as well, must be one that the operator allowed. Of the environment, only ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` count:
no proxy, no .netrc. No cookie is kept.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import closing
from datetime import timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import quote, unquote

import httpcore
import httpx

from celery_delayq.version import __version__

from .applying import FetchFailed
from .deadline import DeadlineTransport
from .hosts import Origin, written_origin
from .model import Fetch
from .template import Template, Variables

_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": f"celery-delayq/{__version__}"}
_MOST_REDIRECTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Fetchers:
    """All requests of a watcher's rules, to be called as :data:`~celery_delayq.rules.applying.Fetching`, by any thread.

    Fetches that are equal have one limit of concurrency.
    """

    def __init__(self) -> None:
        self._client = httpx.Client(
            transport=DeadlineTransport(),
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers=_HEADERS,
        )
        self._fetchers: dict[Fetch, Fetcher] = {}

    def __call__(self, fetch: Fetch, variables: Variables) -> list[Mapping[str, Any]]:
        """As :meth:`Fetcher.__call__`."""
        fetcher = self._fetchers.get(fetch) or self._fetchers.setdefault(fetch, Fetcher(fetch, self._client))
        return fetcher(variables)

    def close(self) -> None:
        """Close all connections; nothing is fetched afterwards, and what is under way fails."""
        self._client.close()


class Fetcher:
    """The requests of one fetch, to be called by any thread."""

    def __init__(self, fetch: Fetch, client: httpx.Client) -> None:
        self._fetch = fetch
        self._client = client
        self._origin = written_origin(fetch.url)
        self._turns = threading.Semaphore(fetch.concurrency)

    def __call__(self, variables: Variables) -> list[Mapping[str, Any]]:
        """The objects in the answer.

        Takes up to ``timeout`` for each of ``1 + retries`` requests, pauses between them, and the wait for its turn.

        Raises:
            Missing: a variable of the url has no value.
            FetchFailed: there is no such answer.
        """
        url = _filled(self._fetch.url, variables)
        pauses = [min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE) for number in range(self._fetch.retries)]
        while True:
            try:
                with self._turns:
                    return self._answer(url)
            except _Passing as failure:
                if not pauses or failure.not_before > self._fetch.timeout or self._client.is_closed:
                    raise
                time.sleep(max(pauses.pop(0), failure.not_before))

    def _answer(self, url: httpx.URL) -> list[Mapping[str, Any]]:
        """That of one attempt."""
        deadline = time.monotonic() + self._fetch.timeout
        for _ in range(1 + _MOST_REDIRECTS):
            self._check(url)
            if self._client.is_closed:
                raise _Passing(url, "not asked: all requests are at an end")
            try:
                request = self._client.build_request("GET", url, extensions={"deadline": deadline})
                with closing(self._client.send(request, stream=True)) as response:
                    if not response.has_redirect_location:
                        return self._objects(response)
            except httpcore.TimeoutException:
                raise _Passing(url, f"no whole answer within {self._fetch.timeout:g} s") from None
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                raise _Passing(url, str(error) or type(error).__name__) from None
            except (httpx.InvalidURL, httpx.RemoteProtocolError, ValueError) as error:  # httpx reads the Location, too
                raise _Final(url, f"leads to what is no address: {error}") from None
            url = _redirected(response)
        raise _Final(url, f"that would be redirect {_MOST_REDIRECTS + 1}")

    def _check(self, url: httpx.URL) -> None:
        """Whether the operator allowed that address."""
        try:
            origin = Origin.of(url)
        except ValueError as error:
            raise _Final(url, str(error)) from None
        if origin != self._origin and not any(allowed.holds(origin) for allowed in self._fetch.allowed_hosts):
            raise _Final(url, f"not allowed; if it should be, add {url.netloc.decode()!r} to allowed_hosts")

    def _objects(self, response: httpx.Response) -> list[Mapping[str, Any]]:
        url, status = response.request.url, response.status_code
        if not response.is_success:
            reason = f"answered {status} {response.reason_phrase}".rstrip()
            if status in (408, 425, 429) or status >= 500:
                raise _Passing(url, reason, _retry_after(response))
            raise _Final(url, reason)
        body = self._body(response)
        try:
            answer = json.loads(body, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            raise _Final(url, f"the answer is no JSON: {error}") from None
        objects = answer if isinstance(answer, list) else [answer]
        if not all(isinstance(one, dict) for one in objects):
            raise _Final(url, "the answer is neither an object nor an array of objects")
        return objects

    def _body(self, response: httpx.Response) -> bytes:
        """The body, unpacked bit by bit: what a small answer unpacks to may be larger than all memory."""
        url, limit = response.request.url, self._fetch.size_limit
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise _Final(url, f"the answer is packed as {encoding!r}, for which nobody asked")
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if encoding == "gzip" else None
        body = bytearray()
        try:
            for part in response.iter_raw():
                if unpacker and unpacker.eof:  # zlib would hoard all the rest
                    raise _Final(url, "the answer goes on after what is packed in it")
                body += unpacker.decompress(part, limit + 1 - len(body)) if unpacker else part
                if len(body) > limit:
                    raise _Final(url, f"the answer is longer than {limit} bytes (size_limit)")
        except zlib.error as error:
            raise _Final(url, f"the answer cannot be unpacked: {error}") from None
        return bytes(body)


class _Final(FetchFailed):
    """Another try would not help."""

    def __init__(self, url: httpx.URL, reason: str) -> None:
        super().__init__(f"GET {_shown(url)}: {reason}", passing=False)


class _Passing(FetchFailed):
    """Another try may help, but not before so many seconds."""

    def __init__(self, url: httpx.URL, reason: str, not_before: float = 0.0) -> None:
        super().__init__(f"GET {_shown(url)}: {reason}", passing=True)
        self.not_before = not_before


def _shown(url: httpx.URL) -> str:
    """For messages: without password and query, which may hold secrets."""
    return f"{url.scheme}://{url.netloc.decode()}{url.raw_path.decode().partition('?')[0]}"


def _filled(template: Template, variables: Variables) -> httpx.URL:
    text = template.fill(variables, _quoted)
    path = re.split(r"[?#]", text, maxsplit=1)[0]
    if any(unquote(segment) in (".", "..") for segment in path.split("/")):
        raise FetchFailed("a part of the url's path would be '.' or '..'", passing=False)
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise FetchFailed(f"the url would be none: {error}", passing=False) from None


def _quoted(value: str) -> str:
    if not value or _CONTROL.search(value):
        what = "has control characters" if value else "is empty"
        raise FetchFailed(f"a variable in the url {what}", passing=False)
    try:
        return quote(value, safe="", errors="surrogateescape")  # so a byte that is no UTF-8 stays what it is
    except UnicodeEncodeError:
        raise FetchFailed("a variable in the url is no text", passing=False) from None


def _redirected(response: httpx.Response) -> httpx.URL:
    """Where a redirect leads."""
    here, location = response.request.url, response.headers["Location"]
    try:
        if httpx.URL(location).userinfo:
            raise _Final(here, "redirects to an address with a user's name")
        return here.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise _Final(here, f"leads to what is no address: {error}") from None


def _retry_after(response: httpx.Response) -> float:
    """How many seconds the server asks us to wait."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - time.time())


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number there")
    return number
