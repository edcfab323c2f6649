"""Where requests may go: hosts as an operator writes them, and whether an address is among them.

Addresses are read by httpx here, too, as they are when the request is made: no text can mean one host to the check and
another to the connection.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import httpx

from celery_delayq.errors import shortened

from .template import Template

_PATTERN = re.compile(r"(\*\.)?(\[[^\[\]]+\]|[^\s:/?#@\[\]*%\\]+)(?::(\d{1,5}))?")
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port of an address: ``host`` in small letters, without brackets or a dot at its end."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> Origin:
        """That of *url*.

        Raises:
            ValueError: it is no address of a web server.
        """
        if url.scheme not in _PORTS:
            raise ValueError("must begin with http:// or https://")
        host = url.raw_host.decode("ascii").lower().removesuffix(".")
        if not host:
            raise ValueError("has no host")
        if "%" in host:  # httpx leaves it there; it has a meaning of its own to some who look names up
            raise ValueError("has a host with a % in it")
        with suppress(ValueError):  # unless it is a name
            host = ipaddress.ip_address(host).compressed
        return cls(url.scheme, host, _PORTS[url.scheme] if url.port is None else url.port)


@dataclass(frozen=True)
class AllowedHost:
    """A host that requests may go to, with any port unless one is named; or all hosts below a domain.

    Attributes:
        text: as it was written.
        below: whether it stands for all names that end in ``.host``, and not for ``host`` itself.
    """

    text: str
    host: str
    port: int | None
    below: bool

    @classmethod
    def parse(cls, text: str) -> AllowedHost:
        """From ``api.example.com``, ``*.example.com``, ``10.0.0.7:8080``, ``[2001:db8::7]:8080``.

        Raises:
            ValueError: it is none; the message says how to write one.
        """
        found = _PATTERN.fullmatch(text)
        try:
            if not found or int(found[3] or 0) > 65_535:
                raise ValueError
            host = Origin.of(httpx.URL(f"http://{found[2]}/")).host
        except (ValueError, httpx.InvalidURL):
            raise ValueError(
                f"{shortened(text)} is no host: write 'api.example.com', '*.example.com', '10.0.0.7:8080' or '[::1]'"
            ) from None
        return cls(text, host, None if found[3] is None else int(found[3]), found[1] is not None)

    def holds(self, origin: Origin) -> bool:
        """Whether *origin* is allowed by it."""
        same = origin.host.endswith(f".{self.host}") if self.below else origin.host == self.host
        return same and self.port in (None, origin.port)


def written_origin(url: Template) -> Origin | None:
    """The origin that all addresses made by *url* have, or None if a variable decides on it.

    Raises:
        ValueError: they cannot be addresses of a web server; the message says why.
    """
    found = _ORIGIN.match(url.begins_with)
    if not found:
        raise ValueError("must begin with http:// or https://")
    if url.names and found.end() == len(url.begins_with):
        return None
    try:
        return Origin.of(httpx.URL(found[0]))
    except httpx.InvalidURL as error:
        raise ValueError(f"is no address: {error}") from None
