"""What URLs name: the Redis of ``delayq_store_url``, and the broker by a name that two spellings of it share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ssl import VerifyMode
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from kombu import Connection
from kombu.utils.url import url_to_parts
from redis.connection import parse_url

from . import broker
from .cluster import Cluster
from .errors import ImproperlyConfigured

#: What Kombu itself reads from a URL's query; the rest are transport options.
_READ_BY_KOMBU = ("ssl_", "virtual_host", "credential_provider")

#: Names of one and the same machine: this one.
_HERE = frozenset((None, "", "localhost", "127.0.0.1", "::1"))


def name_of(connection: Any) -> str:
    """The broker behind a Kombu connection: transport, hosts and virtual host, without credentials."""
    transport = connection.get_transport_cls()
    kind, default = transport.driver_type, transport.default_port
    if not connection.alt:
        return _named(kind, connection.hostname, connection.port or default, connection.virtual_host)
    parts = [url_to_parts(url if "://" in url else f"any://{url}") for url in connection.alt]
    return ",".join(sorted({_named(kind, part.hostname, part.port or default, part.path) for part in parts}))


def _named(kind: str, host: str | None, port: int | None, path: str | None) -> str:
    if host and "://" in host:  # a URL in a URL, as of SQLAlchemy's transport, or a socket's
        return f"{kind}+{re.sub('//[^/@]*@', '//', host)}"
    path = (path or "").strip("/") or ("0" if kind == "redis" else "")
    return f"{kind}://{'localhost' if host in _HERE else host}{f':{port}' if port else ''}/{path}"


def cluster_at(url: str, inherited: Mapping[str, Any]) -> tuple[Cluster, Mapping[str, str]]:
    """A cluster for the store, and what its URL asks for beside the options of connections.

    Raises:
        ImproperlyConfigured: there can be no such cluster.
    """
    try:
        cluster, more = Cluster.from_url(url, inherited)
    except ValueError as error:
        raise ImproperlyConfigured(f"delayq_store_url {_shown(url)} cannot be used: {error}") from None
    prefix = inherited.get("global_keyprefix")
    return cluster, {"global_keyprefix": prefix, **more} if prefix else more


def _shown(url: str) -> str:
    return re.sub("//[^/@]*@", "//**@", url)


def connection_to(url: str, inherited: Mapping[str, Any]) -> Connection:
    """A Kombu connection to the store; what its URL asks for and Kombu does not know are transport options.

    Raises:
        ImproperlyConfigured: it names no Redis.
    """
    options = dict(inherited)
    urls = []
    for one in url.split(";"):
        address, _, query = one.partition("?")
        words = parse_qsl(query)
        options.update({name: _read(text) for name, text in words if not name.startswith(_READ_BY_KOMBU)})
        kept = urlencode([(name, text) for name, text in words if name.startswith(_READ_BY_KOMBU)])
        urls.append(f"{address}?{kept}" if kept else address)
    shown = _shown(urls[0])
    try:
        connection = Connection(";".join(urls), transport_options=options)
        if broker.goes_to_redis(connection):
            return connection
    except Exception as error:  # noqa: BLE001  # whatever Kombu, or a module that the URL names, makes of it
        raise ImproperlyConfigured(f"delayq_store_url {shown} cannot be used: {error}") from None
    raise ImproperlyConfigured(
        f"delayq_store_url {shown} is no Redis; it must be redis://, rediss://, sentinel://, redis-cluster:// …"
    )


def _read(text: str) -> Any:
    """A value in a URL's query as it is meant."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def place_of(connection: Any) -> tuple[object, ...]:
    """What two connections to the same keys of the same Redis have in common."""
    options = connection.transport_options
    return name_of(connection), options.get("global_keyprefix") or "", options.get("master_name")


def url_for_redis(connection: Any) -> str | None:
    """Where *connection*, a Kombu connection, goes, as a URL that redis-py reads.

    None: that is no Redis; or no such URL can say it, as with Sentinels and several addresses.
    """
    if not broker.goes_to_redis(connection) or broker.has_sentinels(connection) or connection.alt:
        return None
    host, path, query = connection.hostname or "localhost", connection.virtual_host or "", {}
    user, password = (quote(text or "", safe="") for text in (connection.userid, connection.password))
    login = f"{user}:{password}@" if user or password else ""
    if "://" in host:
        parts = urlsplit(host)
        path = dict(parse_qsl(parts.query)).get("virtual_host", path)
        return f"unix://{login}{parts.path}?db={path.strip('/') or 0}"
    if isinstance(connection.ssl, Mapping):
        query = {name: _ssl_option(value) for name, value in connection.ssl.items()}
    host = f"[{host}]" if ":" in host else host
    url = f"redis{'s' if connection.ssl else ''}://{login}{host}:{connection.port or 6379}/{path.strip('/') or 0}"
    return f"{url}?{urlencode(query)}" if query else url


def _ssl_option(value: Any) -> str:
    """As redis-py reads it in a URL: ``required`` for ``ssl.CERT_REQUIRED``."""
    return str(value.name).removeprefix("CERT_").lower() if isinstance(value, VerifyMode) else str(value)


def is_redis_of(url: str, connection: Any) -> bool:
    """Whether *url*, as redis-py reads it, names the server and the database of *connection*, a Kombu connection; not
    if that cannot be told.
    """
    own = url_for_redis(connection)
    try:
        return own is not None and _redis_at(url) == _redis_at(own)
    except ValueError:  # no such URL
        return False


def _redis_at(url: str) -> tuple[object, ...]:
    options: Mapping[str, Any] = parse_url(url)
    database = int(options.get("db") or 0)
    if "path" in options:
        return options["path"], database
    host = options.get("host")
    return "localhost" if host in _HERE else host, options.get("port") or 6379, database
