"""The turns of a session, while it lasts: what the user says in, what the engine is asked and the client is told out.

Pure, as the session is. At most one response runs. Each ends by exactly one terminal event (`response_complete`,
`cancelled` or `error`), and nothing of it is said after that: what the engine still delivers for a response that
is over is ignored.
"""

from collections.abc import Callable

import msgspec

from llm_service import events
from llm_service.condenser import Condenser
from llm_service.conversation import Conversation, Prompt
from llm_service.counters import Counters
from llm_service.effects import Condense, Count, Dropped, Effect, Generate, Hush, Send, Stop, StopAsides, Warm
from llm_service.errors import (
    ContextOverflow,
    FastTalkError,
    QueueFull,
    ResponseInProgress,
    ToolResultsOverdue,
    TooManyToolCalls,
    UnexpectedToolResult,
    UnknownChunk,
)
from llm_service.events import Thinking
from llm_service.generation import Delta, Finish, GenerationRequest, Message, SamplingParams, TakeDelta
from llm_service.heard import Heard
from llm_service.response import Response, SpokenChunk, Taker
from llm_service.sentences import Chunk
from llm_service.session_config import SessionConfig
from llm_service.session_defaults import Choices, SessionDefaults
from llm_service.speech_choices import SpeechChoices
from llm_service.summary import Condensation

# Times that a model may ask for tools before it answers.
MAX_TOOL_STEPS = 16
# Windows full of dropped turns that wait at most for a summary; the oldest are forgotten.
WINDOWS_DROPPED = 2


class Turns:
    """What a session is beside its beginning and its end, which are the subclass's: it gives the `id`, and calls
    `_start_over` before anything is said.

    Every method that takes an event returns the effects it has; a delta alone, since there is one for every token, is
    sent on from within the call that takes it. Times are in seconds.
    """

    __slots__ = (
        "_active_at",
        "_asides",
        "_calls",
        "_choices",
        "_chunks",
        "_condenser",
        "_conversation",
        "_defaults",
        "_dropped_before",
        "_heard",
        "_last_response",
        "_queue",
        "_refusing",
        "_response",
        "counters",
        "id",
    )

    id: str
    _active_at: float

    def __init__(self, defaults: SessionDefaults) -> None:
        self._defaults = defaults
        self._response: Response | None = None
        self._last_response = 0
        self._calls = 0
        self._chunks = 0
        self._asides = False  # something was asked of the engine beside the turns
        self._refusing: FastTalkError | None = None
        self._queue: list[events.UserMessage] = []
        self.counters = Counters()

    def _start_over(self, config: SessionConfig) -> None:
        """Forget what was said."""
        self._heard = Heard()
        self._dropped_before = 0  # tokens that were told of
        self._conversation = Conversation(
            max_messages=self._defaults.max_history_messages,
            low_water=self._defaults.low_water,
            high_water=self._defaults.high_water,
        )
        self._condenser = Condenser(self._conversation, max_tokens=self._defaults.summary_max_tokens)
        self._set_config(config)

    # What others may know of them

    @property
    def running(self) -> int | None:
        """The number of the running response, if one runs."""
        return None if self._response is None else self._response.number

    @property
    def speech(self) -> SpeechChoices | None:
        """How the running response is spoken; None: not at all, or none runs."""
        return None if self._response is None else self._response.choices.speech

    @property
    def conversation(self) -> Conversation:
        return self._conversation

    @property
    def queued(self) -> int:
        return len(self._queue)

    # What the engine says

    def taker(
        self,
        number: int,
        say: Callable[[str], None],
        send: Callable[[Thinking], None],
        clock: Callable[[], float],
        times: list[float],
    ) -> TakeDelta:
        """Return what takes this response's text from the engine and sends it on: all of it in one call a token.

        The answer's text goes to `say`, as a token each. `times` gets the time of each delta.
        """

        def think(text: str) -> None:
            if "thinking" in self._choices.events:
                send(Thinking(data=text))

        response = self._response
        if response is None or response.number != number:
            return _ignore
        response.measure(times)
        return Taker(response, say=say, think=think, clock=clock, times=times).take

    def cut(self, number: int, chunk: Chunk) -> events.Chunk | None:
        """Take note of a chunk of the running response, cut to be spoken; returns it as the client is told of it."""
        response = self._response
        if response is None or response.number != number:
            return None
        self._chunks += 1
        spoken = response.chunks[self._chunks] = SpokenChunk(chunk, response.earlier_chars)
        return events.Chunk(id=self._chunks, text=chunk.text, start=spoken.start, end=spoken.end)

    def counted(self, number: int, tokens: int | None, now: float) -> list[Effect]:
        """Take the engine's count of the running response's message; None: it could not count after all."""
        response = self._response
        if response is None or response.number != number or response.uncounted is None:
            return []
        message, response.uncounted = response.uncounted, None
        return self._ask(response, message, now, tokens)

    def said(self, number: int) -> str | None:
        """Return the running response's answer so far, None if there was more to it than text."""
        response = self._response
        if response is None or response.number != number or response.steps:
            return None
        return response.text if len(response.pieces) == len(response.times) else None

    def waits(self, number: int, position: int) -> list[Effect]:
        """Take the place of the running response in the line for the engine; 1 is next."""
        response = self._response
        if response is None or response.number != number or "queued" not in self._choices.events:
            return []
        return [Send(events.Queued(position=position, id=response.id))]

    def finished(self, number: int, finish: Finish, now: float) -> list[Effect]:
        """Take the end of a generation: of the response, unless the model asked for tools."""
        response = self._response
        if response is None or response.number != number:
            return []
        self._active_at = now
        if finish.tool_calls:
            return self._ask_tools(response, finish, now)
        self._let_go(response)
        text = response.text
        self._conversation.commit(text, usage=response.held(finish.usage))
        response.turn = self._conversation.last
        settled = self._settle()
        stats = response.stats(
            finish,
            now,
            context_window=response.choices.window,
            dropped_turns=self._conversation.dropped_turns,
        )
        response.rest(text)
        self.counters.tokens_generated += stats.tokens_generated
        self.counters.generations_completed += 1
        effects: list[Effect] = [Send(events.ResponseComplete(stats=stats, id=response.id))]
        if "context" in self._choices.events:
            use = stats.context
            effects.append(Send(events.Context(used=use.used, limit=use.limit, dropped=use.dropped)))
        return effects + settled + self._next(now)

    def failed(self, number: int, error: FastTalkError, now: float) -> list[Effect]:
        """Take the failure of a generation: the turn is undone, the session goes on.

        A prompt that the engine found too long is tried again with half the history, down to none: an engine may have
        a smaller window for this model than the service knows.
        """
        response = self._response
        if response is None or response.number != number:
            return []
        self._active_at = now
        if isinstance(error, ContextOverflow) and not response.times:
            shorter = self._conversation.retry(**_bounds(response.choices))
            if shorter is not None:
                return [self._generate(response, shorter)]
        return self._fail(response, error, now)

    def _fail(self, response: Response, error: FastTalkError, now: float) -> list[Effect]:
        self._let_go(response)
        self._heard.undo(response)
        self._conversation.rollback()
        self.counters.turns -= 1
        silenced: list[Effect] = [] if response.choices.speech is None else [Hush(response.number)]
        return [*silenced, self._error(error, id=response.id, terminal=True), *self._settle(), *self._next(now)]

    def overdue(self, now: float) -> list[Effect]:
        """Fail the response whose tool results do not come."""
        response = self._response
        if response is None or response.tools_at is None or now - response.tools_at <= self._defaults.tool_timeout:
            return []
        error = ToolResultsOverdue(
            f"no tool_result came within {self._defaults.tool_timeout:g} seconds; the turn is undone, send it again"
        )
        return self.failed(response.number, error, now)

    def condensed(self, job: Condensation, text: str | None) -> list[Effect]:
        """Take what the engine made of turns, which are dropped with it; None: it is not to be asked for now."""
        if text is None:
            self._condenser.skipped(job)
            return []
        self._condenser.answered(job, text)
        if self._response is not None:
            return []
        self._condenser.settle()
        return self._dropped()

    # What stops them

    def drain(self, error: FastTalkError) -> list[Effect]:
        """Start nothing more: what waits and what still comes is answered by this error."""
        self._refusing = error
        effects: list[Effect] = [self._error(error, id=message.id) for message in self._queue]
        self._queue.clear()
        return effects

    def abort(self, error: FastTalkError) -> list[Effect]:
        """End the running response by an error that is not the engine's; what was said of it stays in the history."""
        self._queue.clear()
        id_ = None if self._response is None else self._response.id
        effects = self._interrupt()
        return [*effects, self._error(error, id=id_, terminal=True)] if effects else []

    def desert(self) -> list[Effect]:
        """Take note that nobody listens any more: what runs is stopped, what was said is kept."""
        return self._leave()

    # Client events, one method each

    def _message(self, event: events.UserMessage, now: float, *, sounds: bool) -> list[Effect]:
        """Take what the user said; `sounds` says that an answer is still being heard."""
        if self._response is None:
            return self._barge_in(sounds=sounds) + self._respond(event, now)
        match self._choices.on_busy:
            case "interrupt":
                return self._stop_all() + self._respond(event, now)
            case "queue":
                return self._enqueue(event)
            case _:
                error = ResponseInProgress(
                    "a response is running; wait for its end, cancel it, or set config.on_busy to interrupt or queue"
                )
                return [self._error(error, id=event.id)]

    def _barge_in(self, *, sounds: bool) -> list[Effect]:
        """Stop what is still spoken of an answer whose text is whole, since the user speaks; but not under `queue`."""
        if self._choices.on_busy == "queue":
            speech = self._choices.speech
            if speech is not None and speech.audio and not sounds:
                self._heard = Heard()  # to the end, whatever the last ack was
            return []
        # A client with a voice of its own that does not ask to interrupt may send its last ack before it is over.
        if sounds or self._choices.on_busy == "interrupt":
            self._cut_short()
        return self._silenced()

    def _enqueue(self, event: events.UserMessage) -> list[Effect]:
        limit = self._defaults.max_queued_messages
        if len(self._queue) >= limit:
            error = QueueFull(f"{limit} messages wait already; send this one again after a response")
            return [self._error(error, id=event.id)]
        self._queue.append(event)
        if "queued" not in self._choices.events:
            return []
        return [Send(events.Queued(position=len(self._queue), id=event.id))]

    def _cancel(self) -> list[Effect]:
        if stopped := self._stop_all():
            return [*stopped, *self._settle()]
        self._cut_short()
        return [*self._silenced(), Send(events.Cancelled(success=False))]

    def _played(self, event: events.Played) -> list[Effect]:
        if event.chunk is not None and event.chunk not in range(1, self._chunks + 1):
            error = UnknownChunk("no such chunk was sent; without one, chars count from the beginning of the answer")
            return [self._error(error)]
        if self._heard.take(event.chunk, event.chars) and self._heard.stopped:
            self._cut_short()
        return []

    def _partial_message(self, event: events.PartialMessage) -> list[Effect]:
        idle = self._response is None and self._refusing is None
        if not (idle and event.text.strip() and self._choices.warms):
            return []
        choices = self._choices
        messages = self._conversation.peek(event.text, **_bounds(choices))
        if messages is None:
            return []  # the real message will begin otherwise
        self._asides = True
        return [Warm(self._request(messages, choices, msgspec.structs.replace(choices.sampling, max_tokens=1)))]

    def _tool_result(self, event: events.ToolResult, now: float) -> list[Effect]:
        response = self._response
        if response is None or response.tools_at is None:
            return [self._error(UnexpectedToolResult("no tool call waits for a result"))]
        try:
            whole = self._conversation.tool_result(event.id, event.content)
        except KeyError:
            return [self._error(UnexpectedToolResult("no tool call of this id waits for a result"))]
        if not whole:
            return []
        response.tools_at = None
        counts = self._engine_counts(response.choices)
        try:
            prompt = self._conversation.go_on(engine_counts=counts, **_bounds(response.choices))
        except ContextOverflow as error:
            return self._fail(response, error, now)
        return [self._generate(response, prompt)]

    # Responses

    def _respond(self, message: events.UserMessage, now: float) -> list[Effect]:
        choices = self._choices
        response = Response(self._last_response + 1, choices, message.id, now)
        if self._defaults.counts_tokens and self._conversation.needs_count(message.text, **_bounds(choices)):
            self._response = response
            self._last_response = response.number
            response.uncounted = message
            return [Count(response.number, choices.model, message.text)]
        return self._ask(response, message, now, None)

    def _ask(self, response: Response, message: events.UserMessage, now: float, tokens: int | None) -> list[Effect]:
        self._response = None
        counts = self._engine_counts(response.choices)
        try:
            prompt = self._conversation.begin(
                message.text, engine_counts=counts, tokens=tokens, **_bounds(response.choices)
            )
        except FastTalkError as error:
            return [self._error(error, id=message.id, terminal=True), *self._next(now)]
        self._response = response
        self._last_response = response.number
        self._begin_turn(response)
        effects: list[Effect] = []
        if "response_started" in self._choices.events:
            effects.append(Send(events.ResponseStarted(id=message.id)))
        return [*effects, self._generate(response, prompt)]

    def _engine_counts(self, choices: Choices) -> bool:
        """Whether the engine refuses what is too long; it does not for a window of the session's that is smaller."""
        return self._defaults.window_enforced and choices.window == self._defaults.context_window

    def _generate(self, response: Response, prompt: Prompt) -> Generate:
        sampling, window = response.choices.sampling, response.choices.window
        if window < self._defaults.context_window:
            # The engine has a larger window, and would go on into it.
            room = window - prompt.tokens
        elif self._defaults.answer_in_window:
            room = window - prompt.most
        else:
            room = sampling.max_tokens
        if room < sampling.max_tokens:
            sampling = msgspec.structs.replace(sampling, max_tokens=max(1, room))
        return Generate(response.number, self._request(prompt.messages, response.choices, sampling))

    def _request(self, messages: tuple[Message, ...], choices: Choices, sampling: SamplingParams) -> GenerationRequest:
        return GenerationRequest(
            model=choices.model,
            messages=messages,
            sampling=sampling,
            # The session's own window bounds its prompts; the engine is told the same for everyone, since
            # another number makes Ollama load the model anew.
            context_window=self._defaults.context_window,
            think=choices.config.think,
            session_id=self.id,
            tools=choices.tools,
        )

    def _ask_tools(self, response: Response, finish: Finish, now: float) -> list[Effect]:
        if response.steps >= MAX_TOOL_STEPS:
            error = TooManyToolCalls(f"the model asked for tools {MAX_TOOL_STEPS} times and did not answer")
            return self.failed(response.number, error, now)
        calls = tuple(msgspec.structs.replace(call, id=self._new_call_id()) for call in finish.tool_calls)
        self._conversation.ask_tools(response.text, calls)
        response.step(finish.usage, now)
        return [
            Send(events.ToolCall(id=call.id, name=call.name, arguments=msgspec.json.decode(call.arguments)))
            for call in calls
        ]

    def _new_call_id(self) -> str:
        """Return an id that no call of the session had: engines number the calls of each answer anew, if at all."""
        self._calls += 1
        # Templates of Mistral's models want nine letters or digits, and nothing else.
        return f"{self._calls:09d}"

    def _settle(self) -> list[Effect]:
        """After a turn: see to it that history is condensed, and tell how much was dropped."""
        self._condenser.settle()
        job = self._condenser.next(self._choices)
        effects = self._dropped()
        if job is not None:
            sampling = SamplingParams(temperature=0.0, top_p=1.0, top_k=1, max_tokens=job.max_tokens)
            request = self._request(job.messages, self._choices, sampling)
            self._asides = True
            # It shares no prefix with the session's prompts, and is to be short.
            effects.append(Condense(job, msgspec.structs.replace(request, think=False, tools=(), session_id="")))
        return effects

    def _dropped(self) -> list[Effect]:
        tokens = self._conversation.dropped_tokens - self._dropped_before
        self._dropped_before += tokens
        return [Dropped(tokens)] if tokens else []

    def _next(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._queue and self._response is None:
            effects += self._respond(self._queue.pop(0), now)
        return effects

    def _interrupt(self) -> list[Effect]:
        """Stop the running response, if any; what the client was sent of it, or heard, stays in the history."""
        response = self._response
        if response is None:
            return []
        self._let_go(response)
        self.counters.generations_cancelled += 1
        if response.uncounted is not None and not self._open_uncounted(response, response.uncounted):
            self._cut_short()
            return [Stop(response.number)]
        text = response.text
        self._conversation.commit(text, interrupted=True)
        response.turn, response.interrupted = self._conversation.last, True
        self._cut_short()
        self.counters.tokens_generated += response.deltas  # the engine was not asked for its count
        response.rest(text)
        return [Stop(response.number), *self._dropped()]

    def _open_uncounted(self, response: Response, message: events.UserMessage) -> bool:
        """Open the turn of a message that the engine is still counting; False if it is too long for that."""
        try:
            self._conversation.begin(message.text, engine_counts=True, **_bounds(response.choices))
        except ContextOverflow:
            return False
        self._begin_turn(response)
        return True

    def _let_go(self, response: Response) -> None:
        self._response = None
        response.over = True

    def _begin_turn(self, response: Response) -> None:
        self.counters.turns += 1
        self._heard.begin(response, behind=self._choices.on_busy == "queue")

    def _cut_short(self) -> None:
        """Let answers end where they were heard, now that their sound is stopped; those that were heard whole stay."""
        self._heard.stopped = True
        for response, end in self._heard.ends():
            if response.turn is not None and (response.interrupted or end < response.chars):
                response.interrupted = True
                self._conversation.cut(response.turn, end)

    def _stop_all(self) -> list[Effect]:
        """Stop the running response and forget the waiting messages; [] when there was neither."""
        waiting = len(self._queue)
        self._queue.clear()
        id_ = None if self._response is None else self._response.id
        effects = self._interrupt()
        if effects:
            effects.append(Send(events.Cancelled(success=True, id=id_, dropped=waiting)))
        return effects

    def _leave(self) -> list[Effect]:
        """Stop all that is done for this session, which is to end."""
        return [*self._stop_all(), *self._stop_asides(), *self._silenced()]

    def _silenced(self) -> list[Effect]:
        return [Hush()] if self._chunks else []

    def _stop_asides(self) -> list[Effect]:
        self._condenser.forget()
        asked, self._asides = self._asides, False
        return [StopAsides()] if asked else []

    def _set_config(self, config: SessionConfig) -> None:
        self._choices = self._defaults.choices(config)
        schemas = msgspec.json.encode(self._choices.tools).decode() if self._choices.tools else ""
        self._conversation.set_system_prompt(self._choices.system_prompt, schemas=schemas, model=self._choices.model)
        # What waits to be condensed may wait for ever, where turns leave the engine no idle time.
        self._conversation.dropped_limit = WINDOWS_DROPPED * self._choices.window if self._choices.summarizes else 0

    def _error(self, error: FastTalkError, *, id: str | None = None, terminal: bool = False) -> Send:  # noqa: A002
        self.counters.errors += 1
        return Send(events.error_event(error, id=id, terminal=terminal))


def _ignore(_: Delta) -> None:
    """Take what a response that is over is still given."""


def _bounds(choices: Choices) -> dict[str, int]:
    return {"context_window": choices.window, "max_tokens": choices.sampling.max_tokens}
