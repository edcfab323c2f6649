"""Hosts: which addresses a pattern allows."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.rules.hosts import AllowedHost, Origin, written_origin
from celery_delayq.rules.template import Template


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("api.example.com", "http://api.example.com/", True),
        ("api.example.com", "https://api.example.com:8443/", True),
        ("API.Example.com.", "http://api.example.COM./", True),
        ("api.example.com", "http://example.com/", False),
        ("api.example.com", "http://api.example.com.evil.example/", False),
        ("api.example.com", "http://xapi.example.com/", False),
        ("api.example.com:8080", "http://api.example.com:8080/", True),
        ("api.example.com:8080", "http://api.example.com/", False),
        ("api.example.com:80", "http://api.example.com/", True),
        ("api.example.com:443", "https://api.example.com/", True),
        ("api.example.com:443", "http://api.example.com/", False),
        ("*.example.com", "http://api.example.com/", True),
        ("*.example.com", "http://a.b.example.com/", True),
        ("*.example.com", "http://example.com/", False),
        ("*.example.com", "http://badexample.com/", False),
        ("*.example.com:81", "http://a.example.com:81/", True),
        ("*.example.com:81", "http://a.example.com/", False),
        ("10.0.0.7", "http://10.0.0.7/", True),
        ("10.0.0.7", "http://167772167/", False),
        ("10.0.0.7", "http://[::ffff:10.0.0.7]/", False),
        ("[::1]", "http://[::1]:99/", True),
        ("[::1]", "http://[0:0:0:0:0:0:0:1]/", True),
        ("[2001:DB8::7]:8080", "http://[2001:db8:0::7]:8080/", True),
        ("[2001:db8::7]:8080", "http://[2001:db8::7]/", False),
        ("bücher.example", "http://xn--bcher-kva.example/", True),
    ],
)
def test_what_a_pattern_allows(pattern: str, url: str, allowed: bool) -> None:
    assert AllowedHost.parse(pattern).holds(Origin.of(httpx.URL(url))) is allowed


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "*.",
        "*.*.com",
        "a*.com",
        "http://a",
        "a/b",
        "a:",
        "a:x",
        "a:99999",
        "me@a",
        "a b",
        "::1",
        "[::1",
        "[a]",
        "a%41",
        ".",
    ],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is no host: write 'api\.example\.com', "):
        AllowedHost.parse(pattern)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://api.example.com/${x}", ("http", "api.example.com", 80)),
        ("HTTPS://API.example.com./${x}", ("https", "api.example.com", 443)),
        ("http://me:pw@10.0.0.7:8080?x=${x}", ("http", "10.0.0.7", 8080)),
        ("http://[::1]#${x}", ("http", "::1", 80)),
        ("http://api.example.com", ("http", "api.example.com", 80)),
        ("http://${x}/", None),
        ("http://api.${x}/", None),
        ("http://api.example.com${x}/", None),
        ("http://api.example.com:${x}/", None),
        ("http://${x}@api.example.com/", None),
    ],
)
def test_the_origin_that_a_template_has(url: str, origin: object) -> None:
    assert written_origin(Template(url)) == origin


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must begin with http:// or https://"),
        ("${x}", "must begin with http:// or https://"),
        ("ftp://a/", "must begin with http:// or https://"),
        ("http:/a", "must begin with http:// or https://"),
        ("http${x}://a/", "must begin with http:// or https://"),
        ("http:///${x}", "has no host"),
        ("http://:80/", "has no host"),
        ("http://a%2fb/", "has a host with a % in it"),
        ("http://a:b/", "is no address"),
        ("http://[::1/", "is no address"),
    ],
)
def test_a_template_that_is_no_address(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        written_origin(Template(url))


@given(st.text(max_size=8))
def test_no_text_beside_a_host_is_below_it(text: str) -> None:
    """Whatever stands before the domain, or after it, the name ends in it, or is not allowed."""
    pattern = AllowedHost.parse("*.example.com")
    for url in (f"http://{text}.example.com/", f"http://a.example.com{text}/"):
        try:
            origin = Origin.of(httpx.URL(url))
        except (ValueError, httpx.InvalidURL):
            continue
        assert pattern.holds(origin) is (origin.host.endswith(".example.com"))
