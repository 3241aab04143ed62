"""Who may come in."""

import base64

import pytest

from llm_service.access import AccessPolicy, key_from_handshake

ALLOWED = "https://app.example.com"


@pytest.fixture
def policy() -> AccessPolicy:
    return AccessPolicy(api_keys=("key-one", "schlüssel"), allowed_origins=(ALLOWED,), port=8000)


@pytest.mark.parametrize(
    "origin",
    [ALLOWED, "http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"],
)
def test_exact_origins_pass(policy: AccessPolicy, origin: str) -> None:
    """The configured origins and the service's own on loopback may connect."""
    assert policy.allows_origin([origin])


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",
        "https://app.example.com.evil.org",
        "https://evil.org/https://app.example.com",
        "https://app.example.com:443",
        "https://app.example.com:8443",
        "https://app.example.com/",
        "https://APP.example.com",
        "https://xapp.example.com",
        "https://example.com",
        "https://app.example.com@evil.org",
        "https://app.example.com\t",
        " https://app.example.com",
        "https://app-example.com",
        "https://app.example.co",
        "https://app.example.comm",
        "null",
        "",
        "file://",
        "*",
        "https://*",
        "https://*.example.com",
        "http://localhost",
        "http://localhost:8001",
        "https://localhost:8000",
        "http://localhost.evil.org:8000",
        "http://127.0.0.2:8000",
        "http://0.0.0.0:8000",
        "http://127.1:8000",
        "http://2130706433:8000",
        "http://[::]:8000",
        "ws://localhost:8000",
        "https://app.example.com%00",
        "https://app.example.com, https://app.example.com",
        "javascript://app.example.com",
        "https:app.example.com",
        "app.example.com",
    ],
)
def test_other_origins_do_not(policy: AccessPolicy, origin: str) -> None:
    """Nothing that only looks like an allowed origin passes."""
    assert not policy.allows_origin([origin])


def test_no_origin_is_no_browser(policy: AccessPolicy) -> None:
    """A client that sends no Origin is no web page and passes."""
    assert policy.allows_origin([])


def test_two_origins_are_refused(policy: AccessPolicy) -> None:
    """A handshake with two Origin headers is refused, even if one of them is allowed."""
    assert not policy.allows_origin([ALLOWED, "https://evil.org"])


def test_star_lets_any_origin_in() -> None:
    """ALLOWED_ORIGINS=* is the operator's own decision."""
    assert AccessPolicy(allowed_origins=("*",), port=8000).allows_origin(["https://anywhere.example"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LocalHost:8000",
        "localhost.",
        "127.0.0.1:8000",
        "192.168.1.7",
        "[::1]:8000",
        "[::1]",
        "[2001:db8::1]:80",
        "llm-service:8000",
        "my_server",
        "nas.local",
        "app.localhost:3000",
        "host.docker.internal:8000",
        "x.svc.cluster.local",
        "talk.example.com",
        "TALK.example.com:443",
        "app.example.com",
        "app.example.com:9999",
    ],
)
def test_hosts_that_nobody_else_owns(host: str) -> None:
    """Addresses, single words, private domains and the hosts that are configured are ours, on any port."""
    policy = AccessPolicy(allowed_origins=(ALLOWED,), allowed_hosts=("talk.example.com",), port=8000)
    assert policy.allows_host([host])


@pytest.mark.parametrize(
    "host",
    [
        *[
            "evil.org",
            "evil.org:8000",
            "127.0.0.1.evil.org",
            "localhost.evil.org",
            "app.example.com.evil.org",
            "example.com",
            "x.app.example.com",
            "app.example.com@evil.org",
            "localhost@evil.org",
            "evil.org#localhost",
            "evil.org/localhost",
            "localhost/ws/llm?x=",
            "localhost:8000:80",
            "localhost:port",
            "localhost:",
            "[::1",
            "::1",
            "[::1]evil.org",
            "[evil.org]",
            "[]",
            ":8000",
            ".",
            "..",
            "1.2.3.4.5",
            "evil.local.org",
            "*",
            "app.*",
            "löcalhost",
            "localhost,evil.org",
        ],
        "",
        "localhost\t",
        " localhost",
        "local host",
        "local\x00host",
    ],
)
def test_hosts_that_anybody_may_own(host: str) -> None:
    """Any other name could be an attacker's that points here, and what is no host is none of ours."""
    policy = AccessPolicy(allowed_origins=(ALLOWED,), allowed_hosts=("talk.example.com",), port=8000)
    assert not policy.allows_host([host])


def test_number_of_hosts() -> None:
    """No Host header is no browser's; two are refused, even if they are ours."""
    policy = AccessPolicy(port=8000)
    assert policy.allows_host([])
    assert not policy.allows_host(["localhost", "localhost"])


@pytest.mark.parametrize(("hosts", "origins"), [("*", ""), ("", "*")])
def test_star_lets_any_host_pass(hosts: str, origins: str) -> None:
    """Where the operator lets any name in, or any page, a name tells nothing."""
    assert AccessPolicy(port=8000, allowed_hosts=[hosts], allowed_origins=[origins]).allows_host(["evil.org"])


@pytest.mark.parametrize("key", ["key-one", "schlüssel"])
def test_known_keys_pass(policy: AccessPolicy, key: str) -> None:
    """Each configured key is accepted, whatever its script."""
    assert policy.needs_key
    assert policy.accepts_key(key)


@pytest.mark.parametrize("key", ["", None, "key-on", "key-one ", "KEY-ONE", "key-one,schlüssel", "\x00", "k" * 10_000])
def test_other_keys_do_not(policy: AccessPolicy, key: str | None) -> None:
    """A key that is not exactly one of ours is refused, as is none."""
    assert not policy.accepts_key(key)


def test_without_keys_everybody_passes() -> None:
    """Where API_KEYS is empty no key is asked for."""
    policy = AccessPolicy(port=8000)
    assert not policy.needs_key
    assert policy.accepts_key(None)


def test_keys_that_change() -> None:
    """Keys of the start stay; of the others those count that were given last, and of none of them is left more than a
    digest."""
    policy = AccessPolicy(api_keys=["fixed"], port=8000, keys_change=True)
    policy.change_keys(["one", "two"])
    digests = {key: policy.digest(key) for key in ("fixed", "one", "two")}
    policy.change_keys(["two", "three"])
    assert {"one": True, "two": False, "fixed": False} == {key: policy.revoked(digests[key]) for key in sorted(digests)}
    assert [True, False, True, True] == [policy.accepts_key(key) for key in ("fixed", "one", "two", "three")]
    assert not policy.revoked("")


def test_all_keys_gone() -> None:
    """Where keys come and go, none left lets nobody in."""
    policy = AccessPolicy(port=8000, keys_change=True)
    assert policy.needs_key
    assert not policy.accepts_key("one")
    assert not policy.accepts_key(None)


@pytest.mark.parametrize(
    ("headers", "subprotocols", "expected"),
    [
        ([(b"authorization", b"Bearer abc")], [], "abc"),
        ([(b"authorization", b"bearer  abc ")], [], "abc"),
        ([(b"authorization", b"Basic " + base64.b64encode(b"a:b"))], [], None),
        ([(b"x-api-key", b"abc")], [], "abc"),
        ([], ["fasttalk", "fasttalk.api-key.abc"], "abc"),
        ([], ["fasttalk"], None),
        ([(b"cookie", b"authorization=abc")], ["abc"], None),
    ],
)
def test_where_a_key_is_looked_for(
    headers: list[tuple[bytes, bytes]], subprotocols: list[str], expected: str | None
) -> None:
    """A key is taken from the Authorization header, X-API-Key or a subprotocol, and from nowhere else."""
    assert expected == key_from_handshake(headers, subprotocols)
