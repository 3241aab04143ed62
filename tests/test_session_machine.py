"""Any order of client, engine and clock: what a session promises holds after every step."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llm_service import events, records
from llm_service.effects import Effect, Generate, Send, Stop
from llm_service.errors import ContextOverflow, EngineTimeout, InvalidJSON
from llm_service.generation import Delta, Finish, GenerationRequest, SamplingParams, Usage
from llm_service.replay import ReplayRecord
from llm_service.sentences import Chunk
from llm_service.session import Session, SessionState
from llm_service.session_config import SessionConfig
from llm_service.session_defaults import SessionDefaults
from tests.sessions import say

FUZZ = 20 if os.environ.get("FASTTALK_FUZZ") == "1" else 1

DEFAULTS = SessionDefaults(
    provider="scripted",
    model="small",
    models=frozenset({"small"}),
    sampling=SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=100),
    context_window=400,
    system_prompt="Be kind.",
    max_history_messages=6,
    max_queued_messages=2,
)
TOO_LARGE = "x" * 4000

QUEUE = SessionConfig(on_busy="queue")
CONFIGS = st.sampled_from(
    [
        QUEUE,
        QUEUE,
        SessionConfig(on_busy="queue", events=["queued", "response_started"]),
        SessionConfig(on_busy="interrupt", events=["thinking", "context"], system_prompt="Be short."),
        SessionConfig(),
    ]
)
REFUSED = SessionConfig(model="refused")
# Mostly what fits.
TEXTS = st.sampled_from(["hi", "hi", "hi", "a" * 200, TOO_LARGE])
# A response by how long ago it was asked for: the newest, mostly; old ones, and one that never was.
AGES = st.sampled_from([0, 0, 0, 0, 1, 2, 3, -1])
USAGES = st.sampled_from([None, Usage(30, 2), Usage(250, 9)])


def _chars(request: GenerationRequest) -> int:
    return sum(len(message.content) for message in request.messages)


@dataclass(eq=False)
class Answer:
    """A response as its client saw it."""

    message: str
    text: str
    said: str = ""
    deltas: int = 0
    heard: int | None = None
    asked: int = 0  # characters of the last prompt
    stopped: bool = False
    terminal: int = 0
    cut: int = 0  # characters that chunks were made of
    end: int | None = None  # where it was cut off
    interrupted: bool = False

    @property
    def kept(self) -> tuple[str, str, bool]:
        """What of it stays in the history."""
        return self.text, self.said[: self.end], self.interrupted


@dataclass
class Playback:
    """What a client hears: answers one behind the other, up to the place that it last told of."""

    line: list[Answer] = field(default_factory=list)
    place: Answer | None = None
    stopped: bool = False

    @property
    def newest(self) -> Answer | None:
        return self.line[-1] if self.line else None

    @property
    def cut_short(self) -> bool:
        """Whether it is told that not all that is whole was heard."""
        return self.place is not None and (self.place.heard or 0) < len(self.place.said)

    def begin(self, answer: Answer, *, queue: bool) -> None:
        if self.stopped or not queue:
            self.line, self.place, self.stopped = [], None, False
        self.line.append(answer)

    def hear(self, answer: Answer | None, chars: int) -> None:
        """Take note of an ack; one of an answer that is over by others' acks counts no more."""
        if answer is None or answer not in self.line:
            return
        answer.heard, self.place = chars, answer
        if self.stopped:
            self.stop()
        else:
            self.line = self.line[self.line.index(answer) :]

    def stop(self) -> None:
        """Let each answer that was heard in part end there, and nothing remain of those behind it."""
        self.stopped = True
        if self.place is None or self.place.heard is None:
            return
        at = self.line.index(self.place)
        ends = [len(answer.said) for answer in self.line]
        ends[at] = self.place.heard
        if self.place.heard < len(self.place.said):
            ends[at + 1 :] = [0] * len(ends[at + 1 :])
        for answer, end in zip(self.line, ends, strict=True):
            if answer.interrupted or end < len(answer.said):
                answer.end, answer.interrupted = end, True


@dataclass
class Client:
    """What a client knows of its session from the events alone."""

    answers: dict[int, Answer] = field(default_factory=dict)
    running: int | None = None
    waiting: list[str] = field(default_factory=list)
    # Messages that nobody has answered for yet, by id.
    open: dict[str, str] = field(default_factory=dict)
    history: list[Answer] = field(default_factory=list)
    playback: Playback = field(default_factory=Playback)
    # Where each chunk begins in its answer, and how long it is, by the chunks' ids; None: nobody knows that any more.
    chunks: dict[int, tuple[Answer, int, int] | None] = field(default_factory=dict)


class SessionMachine(RuleBasedStateMachine):
    """A session, a client that believes what it is told, and an engine that does not stop in time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ids = 0
        self.session = Session(DEFAULTS, new_id=self._new_id, now=0.0)
        self.client = Client()

    def _new_id(self) -> str:
        self.ids += 1
        return f"id-{self.ids}"

    def _tick(self) -> float:
        self.now += 1.0
        return self.now

    # What is done to the session

    @initialize(config=CONFIGS | st.none(), greeted=st.booleans())
    def begin(self, config: SessionConfig | None, greeted: bool) -> None:
        if greeted:
            self.greet()
        if config is not None:
            self.start_session(config)

    @rule(text=TEXTS)
    def user_message(self, text: str) -> None:
        id_ = self._new_id()
        text = f"{text} {id_}"
        self.client.open[id_] = text
        busy, mode = self.client.running is not None, self.session.config.on_busy or "reject"
        begins = self._begins()
        if not begins and not busy and mode == "interrupt":
            self.client.playback.stop()
        if busy and mode == "queue" and len(self.client.waiting) < DEFAULTS.max_queued_messages:
            self.client.waiting.append(id_)
        sent = self._carry_out(self.session.receive(events.UserMessage(text=text, id=id_), self._tick()))
        assert begins == any(isinstance(event, events.SessionStarted) for event in sent)
        if busy and mode != "interrupt":
            queued = id_ in self.client.waiting
            assert queued == (id_ in self.client.open)
            assert len(sent) == (not queued) + (queued and "queued" in (self.session.config.events or ()))

    @rule(text=TEXTS)
    def speak_again(self, text: str) -> None:
        self.user_message(text)

    @rule()
    def cancel(self) -> None:
        busy = self.client.running is not None
        (event,) = self._carry_out(self.session.receive(events.Cancel(), self._tick()))
        assert isinstance(event, events.Cancelled)
        assert busy == event.success
        self.client.playback.stop()

    @rule(chars=st.integers(0, 8))
    def played(self, chars: int) -> None:
        assert [] == self._carry_out(self.session.receive(events.Played(chars=chars), self._tick()))
        self.client.playback.hear(self.client.playback.newest, chars)

    @rule(age=AGES)
    def cut(self, age: int) -> None:
        number = len(self.client.answers) - age
        answer = self.client.answers.get(number)
        start, text = (answer.cut, answer.said[answer.cut :]) if answer is not None else (0, "")
        chunk = Chunk(0, text, start, start + len(text), pieces=((len(text), len(text)),))
        told = self.session.cut(number, chunk)
        assert (number == self.client.running) == (told is not None)
        if told is not None and answer is not None:
            assert told.id not in self.client.chunks
            self.client.chunks[told.id] = (answer, start, len(text))
            answer.cut += len(text)

    @rule(back=st.integers(0, 3), chars=st.integers(0, 8))
    def played_chunk(self, back: int, chars: int) -> None:
        id_ = len(self.client.chunks) - back
        sent = self._carry_out(self.session.receive(events.Played(chunk=max(0, id_), chars=chars), self._tick()))
        if id_ < 1:
            assert ["unknown_chunk"] == [event.error.code for event in sent if isinstance(event, events.Error)]
            return
        assert [] == sent
        known = self.client.chunks[id_]
        if known is not None:
            answer, start, length = known
            self.client.playback.hear(answer, start + min(chars, length))

    @rule(chars=st.integers(0, 4))
    def barge_in(self, chars: int) -> None:
        self.played(chars)
        self.cancel()

    @rule(chars=st.integers(0, 8))
    def barge_in_on_a_chunk(self, chars: int) -> None:
        self.delta(0, " word", False)
        self.cut(0)
        self.delta(0, " more", False)
        self.played_chunk(0, chars)
        self.cancel()

    @rule(chars=st.integers(0, 8), text=TEXTS, more=st.integers(0, 2))
    def interrupt_an_answer_behind_another(self, chars: int, text: str, more: int) -> None:
        """Under `queue`: hear a part of one answer while the next is made, then stop all, and tell more of it."""
        self.update_config(QUEUE)
        self.speak_over_the_sound(chars, text)
        self.delta(0, " next", False)
        self.cancel()
        self.played_chunk(0, chars + more)

    @rule(chars=st.integers(0, 8), text=TEXTS)
    def speak_over_the_sound(self, chars: int, text: str) -> None:
        self.delta(0, " word", False)
        self.cut(0)
        self.finish(0, None)
        self.played_chunk(0, chars)
        self.user_message(text)

    @rule(config=CONFIGS)
    def update_config(self, config: SessionConfig) -> None:
        begins = self._begins()
        sent = self._carry_out(self.session.receive(events.UpdateConfig(config=config), self._tick()))
        assert begins + 1 == len(sent)
        assert isinstance(sent[-1], events.SessionConfigured)

    @rule(
        what=st.sampled_from(
            ["start", "end", "desert", "rest", "come back", "greet", "expire", "unreadable", "refused"]
        ),
        config=CONFIGS,
    )
    def what_is_rare(self, what: str, config: SessionConfig) -> None:
        match what:
            case "start":
                self.start_session(config)
            case "end":
                sent = self._carry_out(self.session.receive(events.EndSession(), self._tick()))
                assert isinstance(sent[-1], events.SessionEnded)
                assert {} == self.client.open
            case "desert":
                self.desert()
            case "rest":
                self.rest()
            case "come back":
                self.come_back(config)
            case "greet":
                self.greet()
            case "expire":
                active = self.session.state is SessionState.ACTIVE
                assert active == bool(self._carry_out(self.session.expire(self._tick())))
            case "unreadable":
                effects = self.session.reject(InvalidJSON("the message is not JSON"), self._tick())
                (event,) = self._carry_out(effects)
                assert isinstance(event, events.Error)
                assert not event.terminal
            case _:
                effects = self.session.receive(events.StartSession(config=REFUSED), self._tick())
                (event,) = self._carry_out(effects)
                assert isinstance(event, events.Error)
                assert "invalid_config" == event.error.code

    def start_session(self, config: SessionConfig) -> None:
        sent = self._carry_out(self.session.receive(events.StartSession(config=config), self._tick()))
        assert isinstance(sent[-1], events.SessionStarted | events.SessionConfigured)
        assert isinstance(sent[-1], events.SessionConfigured) or sent[-1].session_id == self.session.id
        assert {} == self.client.open
        self.client.history, self.client.playback = [], Playback()

    def greet(self) -> None:
        new = self.session.state is SessionState.NEW
        assert new == bool(self._carry_out(self.session.greet(self._tick())))

    def desert(self) -> None:
        busy = self.client.running is not None
        sent = self._carry_out(self.session.desert())
        assert [events.Cancelled] * busy == [type(event) for event in sent]

    def rest(self) -> None:
        """Go through the store and back: the session that is found again has forgotten nothing."""
        self.desert()
        if self.session.state is SessionState.ACTIVE:
            replay = ReplayRecord(7, [])
            stored = records.dump(self.session.record(key="k", whole=True, replay=replay, now=self.now, wall=1000.0))
            record = records.load(stored)
            assert record is not None
            restored = Session.restore(record, DEFAULTS, new_id=self._new_id, now=self.now, wall=1000.0)
            for figure in ("tokens", "dropped_turns", "dropped_tokens", "messages_kept", "system_prompt"):
                assert getattr(restored.conversation, figure) == getattr(self.session.conversation, figure)
            assert restored.stats(self.now) == self.session.stats(self.now)
            self.session = restored
            self.client.chunks = dict.fromkeys(self.client.chunks)
            playback = self.client.playback
            newest = playback.line[-1:]
            place = newest[0] if newest and newest[0].heard is not None else None
            self.client.playback = Playback(newest, place, any(each.interrupted for each in newest) or playback.stopped)

    def come_back(self, config: SessionConfig) -> None:
        """A client that comes back to a gap is told so, and what ran is over without a word more."""
        if self.session.state is not SessionState.ACTIVE:
            return
        event = events.StartSession(session_id=self.session.id, config=config)
        effects = self.session.resume_without(event, "gone", self._tick(), greeted=False)
        if self.client.running is not None:
            answer = self.client.answers[self.client.running]
            assert Stop(self.client.running) == effects[0]
            answer.stopped = True
            self._end(answer)
            self._keep(answer, interrupted=True)
            for waiting in self.client.waiting:
                del self.client.open[waiting]
            self.client.waiting = []
        (sent,) = (effect.event for effect in effects if isinstance(effect, Send))
        assert isinstance(sent, events.SessionStarted)
        assert (False, "gone", self.session.id) == (sent.resumed, sent.reason, sent.session_id)

    def _begins(self) -> bool:
        """Whether the next message begins a session, and with it a history."""
        begins = self.session.state is not SessionState.ACTIVE
        if begins:
            self.client.history, self.client.playback = [], Playback()
        return begins

    # What the engine says, of any response

    @rule(age=AGES, text=st.sampled_from(["a", " word", "日"]), thinking=st.booleans())
    def delta(self, age: int, text: str, thinking: bool) -> None:
        number = len(self.client.answers) - age
        event = say(self.session, number, Delta(text, thinking=thinking), self._tick())
        if number == self.client.running:
            self.client.answers[number].deltas += 1
        if number != self.client.running:
            assert event is None
        elif not thinking:
            assert events.Token(data=text) == event
            self.client.answers[number].said += text
        elif "thinking" in (self.session.config.events or ()):
            assert events.Thinking(data=text) == event
        else:
            assert event is None

    @rule(age=AGES, usage=USAGES)
    def finish(self, age: int, usage: Usage | None) -> None:
        number = len(self.client.answers) - age
        running = number == self.client.running
        sent = self._carry_out(self.session.finished(number, Finish("stop", usage), self._tick()))
        assert running == any(isinstance(event, events.ResponseComplete) for event in sent)
        assert running or not sent

    @rule(age=AGES)
    def fail(self, age: int) -> None:
        number = len(self.client.answers) - age
        running = number == self.client.running
        sent = self._carry_out(self.session.failed(number, EngineTimeout("too slow"), self._tick()))
        assert running == bool(sent)
        assert not running or 1 == self.client.answers[number].terminal

    @rule(age=AGES)
    def overflow(self, age: int) -> None:
        number = len(self.client.answers) - age
        running = number == self.client.running
        effects = self.session.failed(number, ContextOverflow("too long"), self._tick())
        if not running:
            assert [] == effects
            return
        answer = self.client.answers[number]
        again = [effect for effect in effects if isinstance(effect, Generate) and effect.response == number]
        if again:
            assert 0 == answer.deltas
            before, answer.asked = answer.asked, _chars(again[0].request)
            assert answer.asked < before, "each time with less"
            assert again[0].request.messages[-1].content.endswith(answer.text)
        else:
            self._carry_out(effects)
            assert 1 == answer.terminal

    # What the session does to the others

    def _carry_out(self, effects: Sequence[Effect]) -> list[events.ServerEvent]:
        for effect in effects:
            match effect:
                case Generate():
                    self._generate(effect)
                case Stop(number):
                    assert self.client.running == number
                    assert not self.client.answers[number].stopped
                    self.client.answers[number].stopped = True
                case Send(event):
                    self._hear(event)
        return [effect.event for effect in effects if isinstance(effect, Send)]

    def _generate(self, effect: Generate) -> None:
        client = self.client
        assert client.running is None
        assert len(client.answers) + 1 == effect.response
        if client.waiting:
            message = client.waiting.pop(0)
        else:
            (message,) = client.open
        answer = Answer(message, client.open[message], asked=_chars(effect.request))
        assert effect.request.messages[-1].content.endswith(answer.text)
        client.answers[effect.response] = answer
        client.running = effect.response
        client.playback.begin(answer, queue=self.session.config.on_busy == "queue")

    def _hear(self, event: events.ServerEvent) -> None:
        match event:
            case events.ResponseComplete(id=id_):
                answer = self._terminal(id_)
                assert not answer.stopped
                self._keep(answer, interrupted=False)
            case events.Cancelled(success=True, id=id_):
                answer = self._terminal(id_)
                assert answer.stopped
                self._keep(answer, interrupted=True)
                assert len(self.client.waiting) == event.dropped
                for waiting in self.client.waiting:
                    del self.client.open[waiting]
                self.client.waiting = []
            case events.Error(id=str(id_)) if event.terminal and self._runs(id_):
                answer = self._terminal(id_)
                assert not answer.stopped
                if self.client.playback.newest is answer:
                    self.client.playback.line.pop()
                if self.client.playback.place is answer:
                    self.client.playback.place = None
            case events.Error(id=str(id_)):
                # Refused before it became a response: too large, or there is one already.
                too_large = event.error.code == "context_overflow"
                assert too_large == event.terminal
                assert too_large or event.error.code in ("response_in_progress", "queue_full")
                assert self.client.open.pop(id_).startswith(TOO_LARGE) or not too_large
                if id_ in self.client.waiting:
                    self.client.waiting.remove(id_)

    def _terminal(self, id_: str | None) -> Answer:
        assert self.client.running is not None
        answer = self.client.answers[self.client.running]
        assert answer.message == id_
        self._end(answer)
        return answer

    def _runs(self, id_: str) -> bool:
        running = self.client.running
        return running is not None and self.client.answers[running].message == id_

    def _keep(self, answer: Answer, *, interrupted: bool) -> None:
        self.client.history.append(answer)
        answer.interrupted = interrupted
        if interrupted:
            self.client.playback.stop()

    def _end(self, answer: Answer) -> None:
        answer.terminal += 1
        del self.client.open[answer.message]
        self.client.running = None

    # What always holds

    @invariant()
    def client_and_session_agree_on_what_runs(self) -> None:
        assert self.client.running == self.session.running
        assert len(self.client.waiting) == self.session.queued

    @invariant()
    def each_response_ends_once(self) -> None:
        for number, answer in self.client.answers.items():
            assert (number != self.client.running) == answer.terminal

    @invariant()
    def no_message_is_forgotten(self) -> None:
        running = [] if self.client.running is None else [self.client.answers[self.client.running].message]
        assert set(running + self.client.waiting) == set(self.client.open)

    @invariant()
    def only_an_active_session_is_busy(self) -> None:
        assert self.session.state is SessionState.ACTIVE or self.session.running is None
        assert self.session.running is not None or 0 == self.session.queued

    @invariant()
    def history_is_what_the_client_was_sent(self) -> None:
        if self.session.state is not SessionState.ACTIVE:
            return
        conversation = self.session.conversation
        kept = [(turn.user, turn.answer, turn.interrupted) for turn in conversation.turns]
        assert [answer.kept for answer in self.client.history[conversation.dropped_turns :]] == kept


TestSession = SessionMachine.TestCase
TestSession.__doc__ = "After any events in any order a session has kept all its promises."
TestSession.settings = settings(max_examples=15 * FUZZ, stateful_step_count=30, deadline=None)
