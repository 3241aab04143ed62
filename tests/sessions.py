"""Feeds sessions with deltas."""

from llm_service.events import Thinking, Token
from llm_service.generation import Delta
from llm_service.session import Session


def say(session: Session, response: int, delta: Delta, now: float) -> Token | Thinking | None:
    """Let the engine say a delta of a response; return what the client is sent of it."""
    sent: list[Token | Thinking] = []
    times = session._response.times if session._response is not None else []
    session.taker(response, lambda text: sent.append(Token(data=text)), sent.append, lambda: now, times)(delta)
    assert len(sent) < 2
    return sent[0] if sent else None
