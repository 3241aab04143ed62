"""Events on their way to the client."""

import json
from time import monotonic

from llm_service.audio_frames import binary_frame
from llm_service.events import Audio, Cancelled, Queued, ServerEvent, SessionStarted, Token
from llm_service.outbox import Outbox


class Client:
    """Takes frames; while `taking` is False each of them is the last it takes for now."""

    def __init__(self, max_bytes: int = 65_536) -> None:
        self.frames: list[dict[str, object]] = []
        self.flushed = 0
        self.taking = True
        self.outbox = Outbox(max_bytes=max_bytes, replay_bytes=100_000)
        self.outbox.attach(self.write, self.flush)

    def write(self, text: bytes) -> None:
        self.frames.append(json.loads(text))
        if not self.taking:
            self.outbox.pause()

    def flush(self) -> None:
        self.flushed += 1

    @property
    def types(self) -> list[object]:
        return [frame["type"] for frame in self.frames]

    @property
    def text(self) -> str:
        return "".join(str(frame["data"]) for frame in self.frames if frame["type"] == "token")


def started(number: int) -> SessionStarted:
    return SessionStarted(session_id=str(number), provider="p", model="m")


def test_events_are_written_in_order_and_numbered_from_1() -> None:
    """What is put is written at once, with seq 1, 2, 3."""
    client = Client()
    events: list[ServerEvent] = [Queued(position=1), Queued(position=2), Cancelled(success=False)]
    for number, event in enumerate(events, start=1):
        client.outbox.put(event)
        assert number == len(client.frames)
    assert [("queued", 1), ("queued", 2), ("cancelled", 3)] == [
        (frame["type"], frame["seq"]) for frame in client.frames
    ]
    assert 3 == client.outbox.sent == client.outbox.written


def test_numbers_begin_anew_with_a_session() -> None:
    """The first event of a session has seq 1, whether it was written at once or had to wait; all are counted."""
    client = Client()
    client.outbox.put(Queued(position=1))
    client.outbox.put(started(1))
    client.outbox.put(Queued(position=2))
    client.outbox.pause()
    client.outbox.put(Queued(position=3))
    client.outbox.put(started(2))
    client.outbox.put(Queued(position=4))
    client.outbox.resume()
    assert [1, 1, 2, 3, 1, 2] == [frame["seq"] for frame in client.frames]
    assert (2, 6) == (client.outbox.sent, client.outbox.written)


def test_tokens_that_wait_become_one() -> None:
    """Tokens put while the client takes nothing are merged: the text is exact, the events fewer."""
    client = Client()
    words = [f"word{number} " for number in range(100)]
    client.outbox.put(Token(data=words[0]))
    client.outbox.pause()
    for word in words[1:50]:
        client.outbox.put(Token(data=word))
    client.outbox.put(Queued(position=1))
    for word in words[50:]:
        client.outbox.put(Token(data=word))
    assert ["token"] == client.types
    client.outbox.resume()
    assert ["token", "token", "queued", "token"] == client.types
    assert "".join(words) == client.text
    assert [1, 2, 3, 4] == [frame["seq"] for frame in client.frames]


def test_a_merged_token_has_a_bound() -> None:
    """What waited for long comes as several events, none of them much longer than 64 Ki characters."""
    client = Client(max_bytes=1_000_000)
    client.outbox.pause()
    for _ in range(20):
        client.outbox.put(Token(data="x" * 10_000))
    client.outbox.resume()
    sizes = [len(str(frame["data"])) for frame in client.frames]
    assert (200_000, True) == (sum(sizes), max(sizes) < 65_536 + 10_000)
    assert len(sizes) > 1


def test_what_was_paused_by_its_own_write_waits() -> None:
    """A client that takes one frame at a time gets all of them, in order, one for each time it resumes."""
    client = Client()
    client.taking = False
    for position in range(1, 5):
        client.outbox.put(Queued(position=position))
    for written in range(1, 5):
        assert written == len(client.frames)
        client.outbox.resume()
    assert [1, 2, 3, 4] == [frame["position"] for frame in client.frames]
    client.taking = True
    client.outbox.put(Queued(position=5))
    assert 5 == len(client.frames)


def test_what_waits_is_bounded() -> None:
    """Past the bound the outbox is overfull; past twice as much it takes nothing more, though the client reads on."""
    client = Client(max_bytes=65_536)
    client.outbox.pause()
    states = []
    for size in (60_000, 6_000, 66_000):
        client.outbox.put(Token(data="x" * size))
        states.append((client.outbox.overfull, client.outbox.lost))
    assert [(False, False), (True, False), (True, True)] == states
    before = repr(client.outbox)
    client.outbox.put(Token(data="lost"))
    assert before == repr(client.outbox)
    client.outbox.resume()
    client.outbox.put(Token(data="never seen behind a gap"))
    assert "x" * 132_000 == client.text


def test_a_client_that_keeps_up_never_overfills() -> None:
    """The count of what waits goes back to nothing: any amount passes through a small bound."""
    client = Client(max_bytes=1024)
    for _ in range(200):
        client.outbox.pause()
        for _ in range(5):
            client.outbox.put(Token(data="x" * 100))
        client.outbox.resume()
    assert not client.outbox.overfull
    assert (0, 100_000) == (client.outbox.pending_bytes, len(client.text))


def test_a_stall_is_measured() -> None:
    """Only while the client takes nothing does it stall, from the first moment of it."""
    client = Client()
    now = monotonic()
    assert 0.0 == client.outbox.stalled_seconds(now + 100)
    client.outbox.pause()
    client.outbox.pause()
    assert 99 < client.outbox.stalled_seconds(now + 100) <= 100
    client.outbox.resume()
    assert 0.0 == client.outbox.stalled_seconds(now + 100)


def test_close_writes_what_waits() -> None:
    """A close is carried out once all that was put before is written, and once only."""
    client = Client()
    client.outbox.pause()
    client.outbox.put(Token(data="x"))
    client.outbox.close()
    assert (0, True) == (client.flushed, client.outbox.closing)
    client.outbox.resume()
    assert ("x", 1) == (client.text, client.flushed)
    client.outbox.close()
    client.outbox.resume()
    assert 1 == client.flushed


def test_close_with_nothing_waiting() -> None:
    """Nothing is waited for when nothing waits, but what was written last must have been taken."""
    client = Client()
    client.outbox.close()
    assert 1 == client.flushed
    slow = Client()
    slow.taking = False
    slow.outbox.put(Token(data="x"))
    slow.outbox.close()
    assert 0 == slow.flushed
    slow.outbox.resume()
    assert 1 == slow.flushed


def test_nothing_follows_the_close() -> None:
    """What is put after close is dropped."""
    client = Client()
    client.outbox.put(Token(data="x"))
    client.outbox.close()
    client.outbox.put(Token(data="y"))
    client.outbox.resume()
    client.outbox.put(Token(data="z"))
    assert "x" == client.text


def test_without_a_client_everything_waits() -> None:
    """What is put while nobody is attached goes to whoever comes, numbered and merged as it goes out."""
    client = Client()
    client.outbox.put(started(1))
    client.outbox.detach()
    for word in ("a ", "b ", "c "):
        client.outbox.put(Token(data=word))
    client.outbox.put(Cancelled(success=True))
    assert ["session_started"] == client.types
    client.outbox.attach(client.write, client.flush)
    missed = client.outbox.replay.after(1)
    assert [] == missed
    client.outbox.go_on(SessionStarted(seq=1, session_id="1", provider="p", model="m", resumed=True), [])
    assert [("session_started", 1), ("token", 2), ("cancelled", 3)] == [
        (frame["type"], frame["seq"]) for frame in client.frames[1:]
    ]
    assert "a b c " == client.text
    client.outbox.put(Token(data="d"))
    assert 4 == client.frames[-1]["seq"]


def test_what_was_missed_comes_first_and_once() -> None:
    """Missed events come behind the answer, before what waits; a client that is lost within them misses none twice."""
    client = Client()
    client.outbox.put(started(1))
    for word in ("a ", "b ", "c "):
        client.outbox.put(Token(data=word))
    client.outbox.detach()
    client.outbox.put(Token(data="d "))
    answer = SessionStarted(seq=2, session_id="1", provider="p", model="m", resumed=True)
    for _ in range(3):
        client.frames.clear()
        client.taking = False
        client.outbox.attach(client.write, client.flush)
        client.outbox.go_on(answer, client.outbox.replay.after(2) or [])
        assert [2] == [frame["seq"] for frame in client.frames]  # and then it is lost again
        client.outbox.detach()
    client.frames.clear()
    client.taking = True
    client.outbox.attach(client.write, client.flush)
    client.outbox.go_on(answer, client.outbox.replay.after(2) or [])
    assert [2, 3, 4, 5] == [frame["seq"] for frame in client.frames]
    assert "b c d " == client.text
    assert 0 == client.outbox.pending_bytes


def test_a_gap_is_forgotten_whole() -> None:
    """After `forget` nothing of what was, or waited, goes to anybody, and numbers go on."""
    client = Client()
    client.outbox.put(started(1))
    client.outbox.put(Token(data="a"))
    client.outbox.detach()
    client.outbox.put(Token(data="b"))
    client.outbox.attach(client.write, client.flush)
    client.outbox.forget()
    client.outbox.put(Queued(position=1))
    assert ["session_started", "token", "queued"] == client.types
    assert 3 == client.frames[-1]["seq"]
    assert (None, []) == (client.outbox.replay.after(1), client.outbox.replay.after(3))


def test_numbers_go_on_where_another_left() -> None:
    """A restored outbox has what was written, and the next number."""
    client, other = Client(), Client()
    client.outbox.put(started(1))
    client.outbox.put(Token(data="a"))
    other.outbox.restore(client.outbox.replay.record(), events=True)
    assert client.outbox.replay.after(0) == other.outbox.replay.after(0)
    other.outbox.put(Token(data="b"))
    assert [3] == [frame["seq"] for frame in other.frames]
    assert (3, 1) == (other.outbox.sent, other.outbox.written)


def test_audio_is_written_or_left_alone() -> None:
    """Sound goes out at once to a client that takes it, without a number of its own; else nobody keeps it."""
    client = Client()
    outbox = client.outbox
    binary: list[bytes] = []
    audio = Audio(chunk=1, format="pcm", sample_rate=8000, data=b"ab")
    outbox.detach()
    assert not outbox.put_audio(audio, binary=False)
    outbox.attach(client.write, client.flush, binary.append)
    outbox.put(Token(data="a"))

    assert outbox.put_audio(audio, binary=False)
    assert outbox.put_audio(audio, binary=True)
    outbox.put(Token(data="b"))
    outbox.pause()
    assert not outbox.put_audio(audio, binary=False)

    assert [1, 1, 2] == [frame["seq"] for frame in client.frames]
    assert [binary_frame(audio)] == binary
    assert 2 == outbox.replay.seq == outbox.sent
    assert ["token"] == [json.loads(frame)["type"] for frame in outbox.replay.after(1) or []]


def test_who_holds_audio_hears_when_there_is_room() -> None:
    """`ready` is called behind what waited, as often as the client takes more, and not while it closes."""
    client = Client()
    outbox = client.outbox
    ready: list[int] = []
    outbox.ready = lambda: ready.append(len(client.frames))
    outbox.pause()
    outbox.put(Token(data="a"))
    outbox.resume()
    outbox.pause()
    outbox.resume()
    outbox.pause()
    outbox.close()
    outbox.resume()

    assert [1, 1] == ready
