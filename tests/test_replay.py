"""What a client may have missed."""

import json

from hypothesis import given
from hypothesis import strategies as st

from llm_service.events import Queued, Token, encode
from llm_service.replay import Replay


def fill(replay: Replay, kinds: str, size: int = 1) -> list[dict[str, object]]:
    """Write a session's events, "t" for a token, else another, as its outbox does; returns them as they were sent."""
    sent = []
    for kind in kinds:
        seq = replay.seq + 1
        event = Token(seq=seq, data=f"{seq:0{size}} ") if kind == "t" else Queued(seq=seq, position=seq)
        sent.append(json.loads(encode(event)))
        if isinstance(event, Token):
            replay.tokens.append(event.data)
        else:
            replay.add(encode(event))
    return sent


@given(st.text("to", max_size=60), st.integers(-3, 70))
def test_all_or_nothing(kinds: str, seq: int) -> None:
    """Behind a number come exactly the events that were sent after it; before the first and past the last, none."""
    replay = Replay(max_bytes=1_000_000)
    sent = fill(replay, kinds)
    missed = replay.after(seq)
    if 0 <= seq <= len(sent):
        assert missed is not None
        assert sent[seq:] == [json.loads(frame) for frame in missed]
    else:
        assert missed is None


@given(st.text("tttto", min_size=1, max_size=300), st.integers(1, 40), st.integers(200, 4000))
def test_it_is_bounded_and_says_what_is_gone(kinds: str, size: int, bound: int) -> None:
    """What is kept is the newest part without a gap; once a run of tokens has ended, no more than the bound."""
    replay = Replay(max_bytes=bound)
    sent = fill(replay, kinds + "o", size)
    oldest = replay.oldest
    assert len(sent) == replay.seq
    assert replay.after(oldest - 2) is None
    missed = replay.after(oldest - 1)
    assert missed is not None
    assert sent[oldest - 1 :] == [json.loads(frame) for frame in missed]
    assert sum(8 + len(str(event.get("data", ""))) for event in sent[oldest - 1 :]) <= bound


@given(st.text("to", max_size=40), st.text("to", max_size=20), st.booleans())
def test_it_survives_the_store(before: str, after: str, events: bool) -> None:
    """A restored replay goes on with the next number, and has what was kept, unless only numbers were wanted."""
    replay, restored = Replay(max_bytes=1_000_000), Replay(max_bytes=1_000_000)
    sent = fill(replay, before)
    restored.restore(replay.record(), events=events)
    assert len(before) == restored.seq
    sent += fill(restored, after)
    assert [json.loads(frame) for frame in restored.after(len(before)) or []] == sent[len(before) :]
    missed = restored.after(0)
    if events:
        assert missed is not None
        assert sent == [json.loads(frame) for frame in missed]
    else:
        assert (missed is None) == bool(before)


def test_numbers_begin_anew() -> None:
    """After `restart` the first event has number 1, and nothing of before is kept."""
    replay = Replay(max_bytes=1_000_000)
    fill(replay, "ttot")
    replay.restart()
    assert (0, 1) == (replay.seq, replay.oldest)
    assert [[], None] == [replay.after(0), replay.after(1)]
    assert fill(replay, "t") == [json.loads(frame) for frame in replay.after(0) or []]
