"""What one connection may say, and when."""

import hashlib

import pytest

from llm_service.access import AccessPolicy
from llm_service.admission import Admission
from llm_service.errors import RateLimited, Unauthorized
from llm_service.events import Cancel, ClientMessage, StartSession, UserMessage
from llm_service.message_rate import MessageRates

KEYED = AccessPolicy(api_keys=["right"], port=8000)
OPEN = AccessPolicy(port=8000)
DIGEST = hashlib.sha256(b"right").hexdigest()


def user() -> UserMessage:
    return UserMessage(type="user_message", text="hi")


def test_where_no_key_is_asked_for() -> None:
    """Nothing is waited for, and sessions are kept with no key, whatever the handshake brought."""
    for key in (None, "any"):
        admission = Admission(OPEN, MessageRates(0, 1), key)
        assert (False, "") == (admission.waits_for_key, admission.key)


def test_a_key_from_the_handshake() -> None:
    """It is there from the start, as a digest."""
    admission = Admission(KEYED, MessageRates(0, 1), "right")
    assert (False, DIGEST) == (admission.waits_for_key, admission.key)


def test_a_key_in_the_first_message() -> None:
    """Until it comes nothing is known of the client; then the connection has its key's allowance."""
    rates = MessageRates(60, 1)
    admission = Admission(KEYED, rates, None)
    assert (True, "") == (admission.waits_for_key, admission.key)
    first = StartSession(type="start_session", api_key="right")
    admission.check_key(first)
    assert (False, DIGEST) == (admission.waits_for_key, admission.key)
    admission.check_rate(first, 0.0, running=False)
    with pytest.raises(RateLimited):
        Admission(KEYED, rates, "right").check_rate(user(), 0.0, running=False)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (StartSession(type="start_session", api_key="wrong"), "this key is not known"),
        (StartSession(type="start_session"), "asks for a key"),
        (StartSession(type="start_session", api_key=""), "asks for a key"),
        (user(), "asks for a key"),
    ],
)
def test_no_key(message: ClientMessage, said: str) -> None:
    """A first message without a right key is refused with what to do, and the key is still waited for."""
    admission = Admission(KEYED, MessageRates(60, 1), None)
    with pytest.raises(Unauthorized, match=said) as refused:
        admission.check_key(message)
    assert "wrong" not in refused.value.message
    assert (True, "") == (admission.waits_for_key, admission.key)


def test_one_too_many() -> None:
    """It is refused with the time until which it would pass; at that time it does."""
    admission = Admission(OPEN, MessageRates(60, 2), None)
    for _ in range(2):
        admission.check_rate(user(), 10.0, running=False)
    with pytest.raises(RateLimited, match="more than 60 messages a minute") as refused:
        admission.check_rate(user(), 10.3, running=False)
    assert refused.value.retry_after is not None
    assert 0.7 <= refused.value.retry_after <= 0.72
    admission.check_rate(user(), 10.3 + refused.value.retry_after, running=False)


def test_a_cancel() -> None:
    """One that stops something passes always, one that stops nothing is a message as others are."""
    admission = Admission(OPEN, MessageRates(60, 1), None)
    admission.check_rate(user(), 0.0, running=False)
    admission.check_rate(Cancel(type="cancel"), 0.0, running=True)
    with pytest.raises(RateLimited):
        admission.check_rate(Cancel(type="cancel"), 0.0, running=False)
