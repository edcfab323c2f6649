"""Fetches of rules against a real HTTP server that is slow, wrong, huge or wicked."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_delayq.rules import Fetch, deadline, fetching
from celery_delayq.rules.applying import FetchFailed, Fetching
from celery_delayq.rules.fetching import Fetchers
from celery_delayq.rules.template import Missing, Template
from tests.http_server import Answering, HttpServer, http_server

EVENT = {"id": "7"}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server() as server:
        server.answer = lambda request: request.send_json({"id": 7})
        yield server


@pytest.fixture
def other() -> Iterator[HttpServer]:
    with http_server() as server:
        server.answer = lambda request: request.send_json({"from": "the other"})
        yield server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.001)


@pytest.fixture
def fetcher() -> Iterator[Callable[..., Callable[[Any], Any]]]:
    """Makes what fetches, for variables; it is closed in the end."""
    made: list[Fetchers] = []

    def make(url: str, **options: Any) -> Callable[[Any], Any]:
        fetch = Fetch(url=url, returns="child", **{"timeout": 30, **options})
        made.append(Fetchers())
        return partial(made[-1], fetch)

    yield make
    for one in made:
        one.close()


def failure(fetch: Callable[..., Any], variables: Any = EVENT) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        fetch(variables)
    return caught.value


# What comes back.


@pytest.mark.parametrize("answer", [{"id": 7, "at": {"city": "Lyon"}}, [{"id": 7}, {"id": 8}], []])
def test_an_object_is_one_result_and_an_array_is_as_many(server: HttpServer, fetcher: Any, answer: Any) -> None:
    server.answer = lambda request: request.send_json(answer)
    assert fetcher(f"{server.url}/products/${{id}}")(EVENT) == (answer if isinstance(answer, list) else [answer])
    assert server.paths == ["/products/7"]


def test_integers_stay_exact(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.send('{"n": 123456789012345678901234567890, "x": 1.5}')
    assert fetcher(server.url)(EVENT) == [{"n": 123456789012345678901234567890, "x": 1.5}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>", "no JSON"),
        ("", "no JSON"),
        ('{"id": NaN}', "NaN is no number there"),
        ('{"id": 1e999}', "1e999 is no number there"),
        (b'{"id": "\xff"}', "no JSON"),
        ("[" * 200_000, "no JSON"),
        ("5", "neither an object nor an array of objects"),
        ('"text"', "neither"),
        ("null", "neither"),
        ('[{"id": 7}, 5]', "neither"),
        ("[[]]", "neither"),
    ],
)
def test_anything_else_fails_for_good(server: HttpServer, fetcher: Any, body: bytes | str, reason: str) -> None:
    server.answer = lambda request: request.send(body)
    failed = failure(fetcher(f"{server.url}/products?secret=1"))
    assert reason in str(failed)
    assert f"GET {server.url}/products: " in str(failed)
    assert not failed.passing
    assert len(server.paths) == 1


def test_a_body_without_length_is_read_to_its_end(server: HttpServer, fetcher: Any) -> None:
    def in_chunks(request: Answering) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for part in (b'{"a"', b": 1}", b""):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    server.answer = in_chunks
    assert fetcher(server.url)(EVENT) == [{"a": 1}]


def test_a_packed_answer_is_unpacked(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.send(gzip.compress(b'{"a": 1}'), Content_Encoding="gzip")
    assert fetcher(server.url)(EVENT) == [{"a": 1}]
    assert server.requests[0].headers["Accept-Encoding"] == "gzip"


def test_connections_are_kept_and_cookies_are_not(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.send("{}", Set_Cookie="session=1")
    fetch = fetcher(server.url)
    fetch(EVENT)
    fetch(EVENT)
    first, second = server.requests
    assert first.client_address == second.client_address
    assert "Cookie" not in second.headers


def test_no_proxy_of_the_environment(server: HttpServer, fetcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetcher(server.url)(EVENT) == [{"id": 7}]


def test_a_password_of_the_operator_is_sent_and_not_told(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.send("", 404)
    failed = failure(fetcher(f"http://me:secret@127.0.0.1:{server.port}/x"))
    assert server.requests[0].headers["Authorization"] == "Basic bWU6c2VjcmV0"
    assert "secret" not in str(failed)


# Too long, too large, too many.


def drip(send: bytes, before: bytes = b"") -> Callable[[Answering], None]:
    """*before* at once, then *send* byte by byte for at least ten seconds in all."""

    def answer(request: Answering) -> None:
        request.wfile.write(before)
        for byte in send.ljust(200):
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            if request.server.stopping.wait(0.05):
                break
        request.close_connection = True

    return answer


HEADERS = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(drip(b'{"a":1}', HEADERS + b"Connection: close\r\n\r\n"), id="body"),
        pytest.param(drip(HEADERS + b"X: " + b"x" * 200 + b"\r\nContent-Length: 2\r\n\r\n{}"), id="headers"),
        pytest.param(
            drip(b"0" * 200 + b"2\r\n{}\r\n0\r\n\r\n", HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"), id="length"
        ),
        pytest.param(lambda request: request.server.stopping.wait(), id="silence"),
    ],
)
def test_the_timeout_is_for_the_whole_answer(server: HttpServer, fetcher: Any, answer: Any) -> None:
    """However its bytes come; were it not so, the answer would be there in the end."""
    server.answer = answer
    failed = failure(fetcher(server.url, timeout=0.3, retries=0))
    assert "no whole answer within 0.3 s" in str(failed)
    assert failed.passing


def test_the_timeout_holds_over_redirects(server: HttpServer, fetcher: Any) -> None:
    def slowly(request: Answering) -> None:
        if not request.server.stopping.wait(0.2):
            request.redirect("/") if len(server.paths) < 5 else request.send("{}")

    server.answer = slowly
    assert "no whole answer within 0.5 s" in str(failure(fetcher(server.url, timeout=0.5, retries=0)))


@pytest.mark.parametrize("packed", [False, True])
def test_a_huge_answer_is_not_read(server: HttpServer, fetcher: Any, packed: bool) -> None:
    """Nor unpacked: 50 MB in 50 kB."""
    body, packing = (
        (gzip.compress(bytes(50_000_000)), {"Content_Encoding": "gzip"}) if packed else (bytes(50_000_000), {})
    )
    server.answer = lambda request: request.send(body, **packing)
    fetch = fetcher(server.url, size_limit=1000)
    tracemalloc.start()
    try:
        failed = failure(fetch)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5_000_000
    assert "longer than 1000 bytes" in str(failed)
    assert not failed.passing
    assert len(server.paths) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_the_size_limit_is_exact(server: HttpServer, fetcher: Any, packed: bool) -> None:
    body = json.dumps({"a": "x" * 91}).encode()
    assert len(body) == 100
    packing = {"Content_Encoding": "gzip"} if packed else {}
    server.answer = lambda request: request.send(gzip.compress(body) if packed else body, **packing)
    assert len(fetcher(server.url, size_limit=100)(EVENT)) == 1
    assert "longer than 99 bytes" in str(failure(fetcher(server.url, size_limit=99)))


@pytest.mark.parametrize(
    ("encoding", "reason"), [("gzip, gzip", "packed as 'gzip, gzip'"), ("br", "packed as 'br'"), ("gzip", "unpacked")]
)
def test_what_cannot_be_unpacked_safely_fails(server: HttpServer, fetcher: Any, encoding: str, reason: str) -> None:
    server.answer = lambda request: request.send(b"{}", Content_Encoding=encoding)
    assert reason in str(failure(fetcher(server.url)))


def test_what_follows_a_packed_body_is_not_kept(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.send(gzip.compress(b"{}") + bytes(50_000_000), Content_Encoding="gzip")
    assert "goes on after what is packed" in str(failure(fetcher(server.url)))


def test_no_more_at_a_time_than_its_concurrency(server: HttpServer, fetcher: Any) -> None:
    lock, running, most = threading.Lock(), set[int](), 0
    too_many = threading.Event()

    def answer(request: Answering) -> None:
        nonlocal most
        with lock:
            running.add(id(request))
            most = max(most, len(running))
            if len(running) > 2:
                too_many.set()
        too_many.wait(0.2)  # for those that ought to wait for their turn
        with lock:
            running.remove(id(request))
        request.send("{}")

    server.answer = answer
    fetch = fetcher(server.url, concurrency=2)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(fetch, [EVENT] * 8)) == [[{}]] * 8
    assert most <= 2
    assert len(server.paths) == 8


def test_a_failure_gives_its_turn_back(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.send("", 404)
    fetch = fetcher(server.url, concurrency=1)
    failure(fetch)
    failure(fetch)


# Once more.


def times(failing: int, **answer: Any) -> Callable[[Answering], None]:
    """*answer*, but so many times only; then all is well."""
    count = itertools.count(1)
    return lambda request: request.send("", **answer) if next(count) <= failing else request.send("{}")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: HttpServer, fetcher: Any, status: int) -> None:
    server.answer = times(2, status=status)
    assert fetcher(server.url, retries=2)(EVENT) == [{}]
    assert len(server.paths) == 3


def test_not_more_often_than_it_may_be(server: HttpServer, fetcher: Any) -> None:
    server.answer = times(3, status=500)
    failed = failure(fetcher(server.url, retries=2))
    assert "answered 500 Internal Server Error" in str(failed)
    assert failed.passing
    assert len(server.paths) == 3


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410])
def test_what_will_not_pass_is_tried_once(server: HttpServer, fetcher: Any, status: int) -> None:
    server.answer = lambda request: request.send("", status)
    failed = failure(fetcher(server.url))
    assert f"answered {status}" in str(failed) or status == 204
    assert not failed.passing
    assert len(server.paths) == 1


def test_a_connection_that_breaks_is_tried_again(server: HttpServer, fetcher: Any) -> None:
    def breaks(request: Answering) -> None:
        if len(server.paths) == 1:
            request.close_connection = True  # and no answer
        elif len(server.paths) == 2:
            request.send("{", Content_Length="2")  # one byte is missing
            request.close_connection = True
        else:
            request.send("{}")

    server.answer = breaks
    assert fetcher(server.url)(EVENT) == [{}]


def test_a_refused_connection_may_pass(fetcher: Any) -> None:
    with socket.socket() as bound:  # and not listening: nobody else can have this port
        bound.bind(("127.0.0.1", 0))
        failed = failure(fetcher(f"http://127.0.0.1:{bound.getsockname()[1]}/"))
    assert "refused" in str(failed)
    assert failed.passing


@pytest.mark.parametrize("trouble", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_host_without_address_may_pass(fetcher: Any, monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
    def unknown(*args: Any, **options: Any) -> None:
        raise trouble

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failed = failure(fetcher("http://nowhere.example/"))
    assert str(trouble) in str(failed)
    assert failed.passing


def test_each_address_of_a_host_is_tried(server: HttpServer, fetcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host != "twofold.example":
            return real(host, port, *args, **options)
        return [(*real("127.0.0.2", port)[0][:4], ("127.0.0.2", port)), *real("127.0.0.1", port, *args, **options)]

    connect, given = httpcore.SyncBackend.connect_tcp, list[tuple[str, float]]()

    def connecting(self: Any, host: str, port: int, timeout: float, *args: Any) -> Any:
        given.append((host, timeout))
        return connect(self, host, port, timeout, *args)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connecting)
    assert fetcher(f"http://twofold.example:{server.port}/", retries=0, timeout=30)(EVENT) == [{"id": 7}]
    (first, half), (second, rest) = given
    assert (first, second) == ("127.0.0.2", "127.0.0.1")
    assert half <= 15 < rest


@pytest.mark.parametrize("when", ["31", "9" * 400, "{date} GMT", "{date} -0000"])
def test_a_long_retry_after_leaves_it_to_the_watcher(server: HttpServer, fetcher: Any, when: str) -> None:
    in_an_hour = datetime.now(timezone.utc) + timedelta(hours=1)
    date = format_datetime(in_an_hour, usegmt=True).removesuffix(" GMT")
    server.answer = times(1, status=503, Retry_After=when.format(date=date))
    failed = failure(fetcher(server.url, timeout=30))
    assert failed.passing
    assert len(server.paths) == 1


@pytest.mark.parametrize(
    ("after", "pause"),
    [("2", 2.0), ("0", 0.001), ("soon", 0.001), ("-5", 0.001), ("Sat, 01 Jan 2000 00:00:00 GMT", 0.001)],
)
def test_a_short_retry_after_is_heeded(
    server: HttpServer, fetcher: Any, monkeypatch: pytest.MonkeyPatch, after: str, pause: float
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("celery_delayq.rules.fetching.time.sleep", pauses.append)
    server.answer = times(1, status=429, Retry_After=after)
    assert fetcher(server.url)(EVENT) == [{}]
    assert pauses == [pause]


def test_pauses_grow_to_a_limit(server: HttpServer, fetcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("celery_delayq.rules.fetching.time.sleep", pauses.append)
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.1)
    server.answer = lambda request: request.send("", 500)
    failure(fetcher(server.url, retries=8))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


# Where it may go.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["/there", "there", "?x=1", "{url}/there"])
def test_redirects_on_one_host_are_followed(server: HttpServer, fetcher: Any, status: int, to: str) -> None:
    server.answer = lambda request: (
        request.redirect(to.format(url=server.url), status) if len(server.paths) == 1 else request.send("{}")
    )
    assert fetcher(f"{server.url}/here")(EVENT) == [{}]
    assert server.paths == ["/here", "/here?x=1" if "?" in to else "/there"]


def test_a_redirect_elsewhere_is_refused(server: HttpServer, other: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.redirect(f"{other.url}/secrets")
    failed = failure(fetcher(server.url))
    assert f"GET {other.url}/secrets: not allowed" in str(failed)
    assert f"add '127.0.0.1:{other.port}' to allowed_hosts" in str(failed)
    assert not failed.passing
    assert other.paths == []
    assert len(server.paths) == 1


@pytest.mark.parametrize("allowed", ["127.0.0.1", "127.0.0.1:{port}"])
def test_a_redirect_to_an_allowed_host(server: HttpServer, other: HttpServer, fetcher: Any, allowed: str) -> None:
    server.answer = lambda request: request.redirect(other.url)
    fetch = fetcher(server.url, allowed_hosts=[allowed.format(port=other.port)])
    assert fetch(EVENT) == [{"from": "the other"}]


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("http://me:pw@127.0.0.1:{port}/", "with a user's name"),
        ("//me@127.0.0.1:{port}/", "with a user's name"),
        ("https://127.0.0.1:{port}/", "not allowed"),
        ("http://127.0.0.1/", "not allowed"),
        ("http://localhost:{port}/", "not allowed"),
        ("//[::1]:{port}/", "not allowed"),
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://127.0.0.1:{port}/", "must begin with http"),
        ("javascript:alert(1)", "no address"),
        ("http://[::1", "no address"),
        ("http://127.0.0.1:{port}x/", "no address"),
        ("http://127.0.0.1:{port}\\@evil.example/", "with a user's name"),
        ("http://127.0.0.1:{port}\\.evil.example/", "no address"),
        ("http://xn--/", "no address"),
        ("http://[x]/", "no address"),
    ],
)
def test_wicked_redirects_are_refused(server: HttpServer, fetcher: Any, to: str, reason: str) -> None:
    server.answer = lambda request: request.redirect(to.format(port=server.port))
    failed = failure(fetcher(server.url))
    assert reason in str(failed)
    assert not failed.passing
    assert len(server.paths) == 1


def test_a_redirect_keeps_the_operators_password_on_his_host_only(
    server: HttpServer, other: HttpServer, fetcher: Any
) -> None:
    server.answer = lambda request: request.redirect("/2" if request.path == "/1" else other.url)
    fetcher(f"http://me:pw@127.0.0.1:{server.port}/1", allowed_hosts=["127.0.0.1"])(EVENT)
    assert ["Authorization" in request.headers for request in server.requests] == [True, True]
    assert "Authorization" not in other.requests[0].headers


def test_a_circle_of_redirects_ends(server: HttpServer, fetcher: Any) -> None:
    server.answer = lambda request: request.redirect("/again")
    failed = failure(fetcher(server.url))
    assert "that would be redirect 6" in str(failed)
    assert not failed.passing
    assert len(server.paths) == 6


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("a/b", "a%2Fb"),
        ("../../admin", "..%2F..%2Fadmin"),
        ("%2e%2e", "%252e%252e"),
        ("%2F", "%252F"),
        ("@evil.example", "%40evil.example"),
        (":80@evil.example/", "%3A80%40evil.example%2F"),
        ("?x=1", "%3Fx%3D1"),
        ("x&y=1", "x%26y%3D1"),
        ("#", "%23"),
        ("\\", "%5C"),
        (" ", "%20"),
        ("é", "%C3%A9"),
        ("\udcff", "%FF"),
        ("...", "..."),
        ("-._~", "-._~"),
    ],
)
def test_a_value_is_one_part_of_path_and_query(server: HttpServer, fetcher: Any, value: str, quoted: str) -> None:
    fetcher(f"{server.url}/products/${{id}}/children?of=${{id}}&x=1")({"id": value})
    assert server.paths == [f"/products/{quoted}/children?of={quoted}&x=1"]


@pytest.mark.parametrize("value", [".", "..", "", "a\r\nX: y", "\n", "\0", "\x7f", "a\tb", "\ud800"])
def test_a_value_that_could_lead_astray_is_refused(server: HttpServer, fetcher: Any, value: str) -> None:
    failed = failure(fetcher(f"{server.url}/products/${{id}}/children"), {"id": value})
    assert "url" in str(failed)
    assert not failed.passing
    assert server.paths == []


@pytest.mark.parametrize("path", ["${a}${b}", "${a}.", "%2${c}."])
def test_nor_may_two_together(server: HttpServer, fetcher: Any, path: str) -> None:
    failure(fetcher(f"{server.url}/{path}/x"), {"a": ".", "b": ".", "c": "e"})
    assert server.paths == []


def test_dots_in_a_query_do_no_harm(server: HttpServer, fetcher: Any) -> None:
    fetcher(f"{server.url}/x?in=/${{id}}/")({"id": ".."})
    assert server.paths == ["/x?in=/../"]


@given(st.text())
@example("\r\n\r\n")
def test_no_text_changes_host_or_path(value: str) -> None:
    try:
        url = fetching._filled(Template("http://api.example.com:8080/a/${id}/b?c=${id}&d"), {"id": value})
    except FetchFailed:
        return
    assert (url.scheme, url.host, url.port, url.userinfo, url.fragment) == ("http", "api.example.com", 8080, b"", "")
    path, _, query = url.raw_path.decode().partition("?")
    assert path.count("/") == 3
    assert path.startswith("/a/")
    assert path.endswith("/b")
    assert query.count("&") == 1
    assert query.count("=") == 1


def test_a_variable_host_must_be_allowed(server: HttpServer, fetcher: Any) -> None:
    fetch = fetcher(f"http://${{host}}:{server.port}/", allowed_hosts=["127.0.0.1", "*.example.com"])
    assert fetch({"host": "127.0.0.1"}) == [{"id": 7}]
    for host in ("127.0.0.2", "evil.example", "example.com", "localhost", "2130706433", "0x7f.1"):
        assert "not allowed" in str(failure(fetch, {"host": host}))
    for host in ("127.0.0.1:1", "me@127.0.0.1", "127.0.0.1/", "[::1]", "127.0.0.1#", "127.0.0.1\\"):
        assert not failure(fetch, {"host": host}).passing
    for host in ("xn--", "\u2100", "%", ""):
        assert not failure(
            fetcher("http://${host}.example.com/", allowed_hosts=["*.example.com"]), {"host": host}
        ).passing
    assert len(server.paths) == 1


def test_a_missing_variable_is_told_as_such(server: HttpServer, fetcher: Any) -> None:
    with pytest.raises(Missing, match="id"):
        fetcher(f"{server.url}/${{id}}")({})


# Several, and safe ones.


def test_the_fetchers_of_a_watcher(server: HttpServer) -> None:
    first, second = (Fetch(url=f"{server.url}/{number}", returns="a") for number in (1, 2))
    fetchers = Fetchers()
    answers: Fetching = fetchers
    assert answers(second, {}) == answers(first, {}) == answers(first, {}) == [{"id": 7}]
    fetchers.close()
    assert server.paths == ["/2", "/1", "/1"]
    assert len({request.client_address for request in server.requests}) == 1


def test_nothing_is_fetched_after_the_end(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor tried again, if the end comes in a pause."""
    fetch = Fetch(url=server.url, returns="a", retries=5)
    fetchers = Fetchers()
    monkeypatch.setattr("celery_delayq.rules.fetching.time.sleep", lambda seconds: fetchers.close())
    server.answer = lambda request: request.send("", 500)
    for _ in range(2):
        failed = failure(partial(fetchers, fetch))
        assert "at an end" in str(failed)
        assert failed.passing
    assert len(server.paths) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_certificates_are_checked(
    server: HttpServer, fetcher: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against those of SSL_CERT_FILE, where it is set."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    url = f"https://127.0.0.1:{server.port}/"
    assert "certificate" in str(failure(fetcher(url, retries=0)))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(deadline, "_trust", deadline._trust.__wrapped__)  # not what was read before
    assert fetcher(url)(EVENT) == [{"id": 7}]
