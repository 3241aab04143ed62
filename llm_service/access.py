"""Who may open a WebSocket: which web origins, under which names of ours, and which keys.

Pure. A browser sends the Origin of the page that opens a socket and nobody else can be trusted to; a client
that sends none is no browser page, and other sites cannot make it connect.

An attacker can let a name of his own point to this machine, and his page is then, to the browser, of the same origin as
we are ("DNS rebinding"): it may read what answers HTTP. So the Host header must not be a name that anybody may own.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence

# What nobody can buy: names without a dot, and those of top-level domains that the public DNS does not have.
PRIVATE_DOMAINS = (".local", ".localhost", ".internal")

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+?)\.?)(?::\d{1,5})?", re.IGNORECASE)

SUBPROTOCOL = "fasttalk"
# Browsers cannot set headers on a WebSocket: there the key is offered as a second subprotocol.
KEY_SUBPROTOCOL_PREFIX = "fasttalk.api-key."


class AccessPolicy:
    """The allowlists of one service. Keys are kept as digests, and may change while it runs.

    `allowed_origins` are exact (`scheme://host[:port]`), or `*` for any. The loopback origins on `port` are
    always allowed: pages the service itself serves come from there, and a foreign name cannot be rebound to
    them. `allowed_hosts` are names in lower case, or `*` for any; those of the origins are among them.
    """

    def __init__(
        self,
        *,
        api_keys: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        allowed_hosts: Iterable[str] = (),
        port: int,
        keys_change: bool = False,
    ) -> None:
        self._fixed = self._digests = frozenset(map(_digest, api_keys))
        # Of keys that come and go, all may go: that lets nobody in, not everybody.
        self._needs_key = keys_change or bool(self._digests)
        own = {f"http://{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]")}
        origins = frozenset(allowed_origins)
        self._origins = origins | own
        self._hosts = frozenset(allowed_hosts).union(_name(origin.partition("://")[2]) or origin for origin in origins)

    @property
    def needs_key(self) -> bool:
        return self._needs_key

    def change_keys(self, api_keys: Iterable[str]) -> None:
        """Let these keys in from now on, beside those of the start, and no others."""
        self._digests = self._fixed.union(map(_digest, api_keys))

    def revoked(self, digest: str) -> bool:
        """Whether the key that `digest` stands for was let in once and is so no more; "" stands for none."""
        return digest != "" and bytes.fromhex(digest) not in self._digests

    def digest(self, key: str | None) -> str:
        """Return what stands for a key with the sessions it opened; "" where no key is asked for."""
        return _digest(key).hex() if self._needs_key and key else ""

    def allows_origin(self, origins: Sequence[str]) -> bool:
        """Whether a handshake with these Origin headers may go on: none at all, or one that is allowed."""
        if not origins:
            return True
        return len(origins) == 1 and ("*" in self._origins or origins[0] in self._origins)

    def allows_host(self, hosts: Sequence[str]) -> bool:
        """Whether a request with these Host headers may go on: none at all, or one that nobody else can own."""
        if not hosts or "*" in self._hosts:
            return True
        name = _name(hosts[0]) if len(hosts) == 1 else ""
        private = name.endswith(PRIVATE_DOMAINS) or "." not in name or _is_address(name)
        return bool(name) and (private or name in self._hosts)

    def accepts_key(self, key: str | None) -> bool:
        """Whether the key is one of ours; takes as long for a wrong one as for a right one."""
        if not self._needs_key:
            return True
        digest = _digest(key or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return bool(key) and any(matches)


def key_from_handshake(headers: Iterable[tuple[bytes, bytes]], subprotocols: Iterable[str]) -> str | None:
    """Return the key a handshake carries: `Authorization: Bearer`, `X-API-Key` or a subprotocol.

    Query strings are not looked at: they end in the logs of every proxy on the way.
    """
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    for offered in subprotocols:
        if offered.startswith(KEY_SUBPROTOCOL_PREFIX):
            return offered.removeprefix(KEY_SUBPROTOCOL_PREFIX)
    return None


def _name(host: str) -> str:
    """Return the name or address of a Host header in lower case, without port; "" if it is none."""
    found = _HOST.fullmatch(host)
    if found is None:
        return ""
    six, name = found["six"], found["name"]
    return name.lower() if name else six.lower() if _is_address(six) else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    # Digests are of one length, so that comparing tells nothing about a key's.
    return hashlib.sha256(key.encode()).digest()
