"""What was said in a session, and what of it goes into the next prompt.

Pure: no clock, no I/O. Tokens are counted by the engine: after each turn the conversation learns the exact
size of its prompt, and only what has not been through the engine yet is estimated.
"""

import msgspec

from llm_service.errors import ContextOverflow
from llm_service.generation import Message, ToolCall, Usage
from llm_service.history import History
from llm_service.prompt_head import PromptHead
from llm_service.records import ConversationRecord
from llm_service.summary import Condensation
from llm_service.token_estimate import (
    TOKENS_PER_MESSAGE,
    TokenEstimate,
    fewest_tokens,
    most_tokens,
    roughly_most_tokens,
)
from llm_service.turn import ToolStep, Turn

# Kept free for what estimates and templates get wrong, as a share of the window.
MARGIN = 1 / 64
# A count below this share of what was counted before is no count of the whole prompt.
PLAUSIBLE = 0.25

# Turns at the end of the history that no summary stands for: what is spoken of now.
KEPT = 2


class Prompt(msgspec.Struct, frozen=True):
    """The messages of one request, their size in tokens, likely and at most, and the turns dropped to make them fit."""

    messages: tuple[Message, ...]
    tokens: int
    most: int
    dropped_turns: int


class Conversation:
    """The turns of one session, oldest first.

    A turn is opened by `begin` and ended by exactly one of `commit` and `rollback`; between the two the
    history seen by `turns` is what it was before.

    When the prompt would pass `high_water` of the budget (the window less the answer), whole turns are dropped
    from the front down to `low_water` of it, so that the next many prompts begin with the same bytes: an engine
    reuses its KV cache only for an unchanged prefix. The newest of them, up to `dropped_limit` tokens, wait in
    `dropped` for whoever condenses them.

    The tools' schemas are in every prompt as well, and count with the system prompt. A summary of what was dropped is
    given up where the new message needs its room: it stands for what is older than all that is kept.
    """

    __slots__ = (
        "_head",
        "_high_water",
        "_history",
        "_low_water",
        "_max_messages",
        "_open",
        "_open_counted",
        "_ratio",
        "_ratio_before",
        "_to_drop",
        "dropped",
        "dropped_limit",
        "dropped_tokens",
        "dropped_turns",
    )

    def __init__(
        self, *, system_prompt: str = "", max_messages: int, low_water: float = 0.5, high_water: float = 1.0
    ) -> None:
        self._max_messages = max_messages
        self._low_water = low_water
        self._high_water = high_water
        self._ratio = TokenEstimate()
        self._ratio_before = self._ratio.bytes_per_token
        self._head = PromptHead(system_prompt, self._ratio)
        self._history = History()
        self._open: Turn | None = None
        self._open_counted = False
        # Turns, from the front, that the open turn's prompt left out: gone once it is committed.
        self._to_drop = 0
        self.dropped_turns = 0
        self.dropped_tokens = 0
        self.dropped_limit = 0
        self.dropped: list[Turn] = []

    def __repr__(self) -> str:
        state = "open turn" if self._open is not None else "no open turn"
        return f"<Conversation: {len(self._history.turns)} turns, {state}, {self.dropped_turns} dropped>"

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The finished turns that are kept."""
        return tuple(self._history.turns)

    @property
    def last(self) -> Turn | None:
        """The newest finished turn that is kept."""
        return self._history.turns[-1] if self._history.turns else None

    @property
    def messages_kept(self) -> int:
        """User, assistant and tool messages in the history; the system prompt is not one of them."""
        return self._history.messages

    @property
    def tokens(self) -> int:
        """The size of the history with its system prompt, as far as it is known."""
        return self._head.size + self._history.tokens

    @property
    def system_prompt(self) -> str:
        """What stands before all turns from the next one on; empty means none."""
        return self._head.next_system_prompt

    @property
    def summary(self) -> str:
        """What stands for the turns that were dropped and condensed; empty means none."""
        return self._head.summary

    def set_system_prompt(self, text: str, *, schemas: str = "", model: str = "") -> None:
        """Change the system prompt, and the tools' schemas, from the next turn on.

        Another `model` may have another tokenizer.
        """
        self._head.change(text, schemas=schemas, model=model)

    def condensable(self, share: float, *, context_window: int, max_tokens: int) -> list[Turn]:
        """Return the turns that a summary may stand for: those dropped, and those that will be dropped before long.

        The latter are there once the history is past `share` of the high mark. The last two turns never are.
        """
        budget = _budget(context_window, max_tokens)
        if self.tokens <= share * self._high_water * budget:
            return list(self.dropped)
        count = self._first_kept(self.tokens - self._low_water * budget, 0, 0)
        return self.dropped + self._history.turns[: max(0, min(count, len(self._history.turns) - KEPT))]

    def condensed(self, job: Condensation, summary: str) -> bool:
        """Let a summary stand for the turns it was made of, dropping those that are still kept.

        False if they are not what comes first any more; the oldest of them may have been forgotten meanwhile.
        """
        turns, waiting = self.dropped + self._history.turns, len(self.dropped)
        forgotten = next((at for at, turn in enumerate(job.turns) if turns and turn is turns[0]), 0)
        left = job.turns[forgotten:]
        count = len(left)
        same = len(turns) >= count and all(a is b for a, b in zip(turns, left, strict=False))
        if not same or job.before != self._head.summary:
            return False
        self.set_summary(summary)
        del self.dropped[:count]
        self._drop(count - waiting)
        return True

    def set_summary(self, text: str) -> None:
        """Let this stand for what was dropped, behind the system prompt.

        Raises:
            RuntimeError: a turn is open: its prompt was made with the last one.
        """
        if self._open is not None:
            raise RuntimeError("a turn is open")
        self._head.summarize(text)

    def needs_count(self, text: str, *, context_window: int, max_tokens: int) -> bool:
        """Whether the exact number of this message's tokens could change what is kept of the history."""
        return self._at_most(most_tokens(text)) > self._high_water * _budget(context_window, max_tokens)

    def begin(
        self,
        text: str,
        *,
        context_window: int,
        max_tokens: int,
        engine_counts: bool = False,
        tokens: int | None = None,
    ) -> Prompt:
        """Open a turn with what the user said and return the prompt that asks for its answer.

        `tokens` is the engine's count of the message alone, where it can count. Whole turns are dropped from
        the front when the window or the longest allowed history is passed; the system prompt and the new message
        never are.

        Raises:
            ContextOverflow: the new message does not fit into the window even alone; no turn is open then. With
                `engine_counts`, where the engine refuses what is too long for this window, only if it cannot fit:
                estimates err, and the engine does not.
        """
        if self._open is not None:
            raise RuntimeError("the last turn was neither committed nor rolled back")
        self._head.begin_turn()
        exact = None if tokens is None else tokens + TOKENS_PER_MESSAGE
        turn = Turn(user=text, tokens=self._estimate(text) if exact is None else exact)
        fewest = (fewest_tokens(text) if exact is None else exact) if engine_counts else None
        self._make_fit(turn.tokens, fewest, context_window)
        turn.most = roughly_most_tokens(text) if exact is None else exact
        self._ratio_before = self._ratio.bytes_per_token
        self._to_drop = self._turns_to_drop(turn.tokens, turn.most, context_window, max_tokens)
        if exact is None and (self._to_drop or self._at_most(turn.most) + max_tokens > context_window):
            turn.most = most_tokens(text)
            self._to_drop = self._turns_to_drop(turn.tokens, turn.most, context_window, max_tokens)
        self._open = turn
        self._open_counted = exact is not None
        return self._prompt()

    def retry(self, *, context_window: int, max_tokens: int) -> Prompt | None:
        """Return a shorter prompt for the open turn, after the engine found the last one too long; None: there is none.

        Later estimates are more careful.
        """
        turn = self._opened()
        left = len(self._history.turns) - self._to_drop
        self._ratio.overflowed()
        if not left and not self._head.leave_out_summary():
            return None
        if not self._open_counted:
            turn.tokens, turn.most = self._estimate(turn.user), most_tokens(turn.user)
        more = self._turns_to_drop(*self._open_size(), context_window, max_tokens)
        # What was thought to fit did not: at least half of what is left goes, whatever the estimate says now.
        self._to_drop = max(more, self._to_drop + (left + 1) // 2)
        return self._prompt()

    def ask_tools(self, text: str, calls: tuple[ToolCall, ...]) -> None:
        """Take note, in the open turn, that the model asked for tools, having said `text`."""
        self._opened().steps.append(ToolStep(text, calls))

    def tool_result(self, call_id: str, result: str) -> bool:
        """Take a result of the open turn's last step; returns whether the step is whole.

        Raises:
            KeyError: no such call waits for a result.
        """
        steps = self._opened().steps
        step = steps[-1] if steps else ToolStep("", ())
        if call_id in step.results or all(call.id != call_id for call in step.calls):
            raise KeyError(call_id)
        step.results[call_id] = result
        return step.whole

    def go_on(self, *, context_window: int, max_tokens: int, engine_counts: bool = False) -> Prompt:
        """Return the prompt that goes on behind the open turn's tool results, with less history if they need its room.

        Raises:
            ContextOverflow: they do not fit into the window even alone, as in `begin`; the turn is still open.
        """
        turn = self._opened()
        if not self._open_counted:
            turn.most = most_tokens(turn.user)
        likely, most = self._open_size()
        fewest = sum(fewest_tokens(step.sent) for step in turn.steps) + fewest_tokens(turn.user)
        self._make_fit(likely, fewest if engine_counts else None, context_window)
        self._to_drop = max(self._to_drop, self._turns_to_drop(likely, most, context_window, max_tokens))
        return self._prompt()

    def commit(self, answer: str, *, interrupted: bool = False, usage: Usage | None = None) -> None:
        """End the open turn with its answer; `usage` is the engine's count of that prompt and answer."""
        turn, self._open = self._opened(), None
        turn.answer = answer
        turn.interrupted = interrupted
        turn.fold()
        if self._to_drop or self.dropped:
            self._let_wait(self._drop(self._to_drop))
        self._to_drop = 0
        self._head.keep_as_sent()
        if usage is not None and self._is_plausible(usage):
            self._learn(turn, usage)
        else:
            self._hold(turn)
        self._history.append(turn)

    def rollback(self) -> None:
        """Forget the open turn: the history is what it was before, ready for the same message again."""
        self._opened()
        self._open = None
        self._to_drop = 0
        self._head.take_back_summary()
        # What the engine refused says nothing about the text that stays.
        self._ratio.bytes_per_token = self._ratio_before

    def cut(self, turn: Turn, chars: int) -> None:
        """Let what the assistant said in a turn be no longer than this, and mark it as interrupted."""
        if all(kept is not turn for kept in self._history.turns):
            return  # it was dropped meanwhile
        turn.cut(chars)
        turn.interrupted = True
        self._hold(turn)
        self._history.changed()

    def peek(self, text: str, *, context_window: int, max_tokens: int) -> tuple[Message, ...] | None:
        """Return the prompt that `begin` would make of this message; None where it would drop turns."""
        crowded = self._history.messages + 1 > self._max_messages
        if crowded or self.needs_count(text, context_window=context_window, max_tokens=max_tokens):
            return None
        head = self._head.next_text
        said = Message("user", self._history.joined(text))
        return (*((Message("system", head),) if head else ()), *self._history.said, said)

    def record(self) -> ConversationRecord:
        """Return what `restore` takes; an open turn is not in it."""
        head = self._head
        return ConversationRecord(
            turns=list(self._history.turns),
            dropped=list(self.dropped),
            system_prompt=head.system_prompt,
            schemas=head.schemas,
            model=head.model,
            summary=head.summary,
            system_tokens=head.tokens,
            bytes_per_token=self._ratio.bytes_per_token,
            dropped_turns=self.dropped_turns,
            dropped_tokens=self.dropped_tokens,
        )

    def restore(self, record: ConversationRecord) -> None:
        """Take up where another conversation left; this one must be new."""
        self._head.restore(record.system_prompt, record.schemas, record.model, record.summary, record.system_tokens)
        self._ratio.bytes_per_token = self._ratio_before = record.bytes_per_token
        self.dropped = list(record.dropped)
        self.dropped_turns, self.dropped_tokens = record.dropped_turns, record.dropped_tokens
        for turn in record.turns:
            self._history.append(turn)

    def _opened(self) -> Turn:
        if self._open is None:
            raise RuntimeError("no turn is open")
        return self._open

    # Prompts

    def _prompt(self) -> Prompt:
        turn, head = self._opened(), self._head.text
        history = self._history.without(self._to_drop)
        said = Message("user", history.joined(turn.user))
        messages = (*((Message("system", head),) if head else ()), *history.said, said)
        for step in turn.steps:
            messages += tuple(step.messages())
        likely, most = self._open_size()
        tokens = self._head.size + history.tokens
        slack = self._head.slack + history.slack
        return Prompt(messages, tokens + likely, tokens + slack + most, self._to_drop)

    def _make_fit(self, likely: int, fewest: int | None, context_window: int) -> None:
        """Do as `_check_fit` does, but for the summary, which is given up first."""
        try:
            self._check_fit(likely, fewest, context_window)
        except ContextOverflow:
            if not self._head.leave_out_summary():
                raise
            try:
                self._check_fit(likely, fewest, context_window)
            except ContextOverflow:
                self._head.take_back_summary()
                raise

    def _check_fit(self, likely: int, fewest: int | None, context_window: int) -> None:
        """Raise ContextOverflow if an open turn of this size cannot be asked about, however much history goes.

        `fewest` is what it has at least, where the engine itself refuses what is too long: only that is certain.
        """
        needed = self._head.size + likely if fewest is None else self._head.fewest + fewest
        if needed > _room(context_window):
            raise ContextOverflow(
                f"the message and the system prompt need {'about' if fewest is None else 'more than'} {needed} tokens, "
                f"and the context window has {context_window}; send a shorter message"
            )

    def _turns_to_drop(self, likely: int, most: int, context_window: int, max_tokens: int) -> int:
        """Return how many turns from the front must go for an open turn of this size.

        By what is likely for the marks, and by what may be at most for the window itself.
        """
        budget, low, messages = _budget(context_window, max_tokens), self._low_water, self._history.messages + 1
        size, bound = self.tokens + likely, self._at_most(most)
        room = _room(context_window)
        if size <= self._high_water * budget and bound <= room and messages <= self._max_messages:
            return 0
        # A message that is the most of the prompt leaves what room there is.
        beyond = bound - max(min(room, low * budget + most), 0)
        return self._first_kept(size - low * budget, beyond, messages - low * self._max_messages)

    def _first_kept(self, tokens: float, bound: float, messages: float) -> int:
        """Return how many turns from the front have so many tokens, so many at most, and so many messages."""
        for count, past in enumerate(self._history.turns):
            if tokens <= 0 and bound <= 0 and messages <= 0:
                return count
            tokens -= past.tokens
            bound -= past.tokens + past.slack
            messages -= past.messages
        return len(self._history.turns)

    def _at_most(self, more: int) -> int:
        """How many tokens system prompt and history have at most, and so many `more`."""
        return self._head.size + self._head.slack + self._history.tokens + self._history.slack + more

    def _open_size(self) -> tuple[int, int]:
        """Return what the open turn has, tools included: likely, and at most."""
        turn = self._opened()
        if not turn.steps:
            return turn.tokens, turn.most
        steps = [self._step_size(step) for step in turn.steps]
        return turn.tokens + sum(likely for likely, _ in steps), turn.most + sum(most for _, most in steps)

    def _step_size(self, step: ToolStep) -> tuple[int, int]:
        results = TOKENS_PER_MESSAGE * len(step.calls)  # each is a message of its own
        return self._estimate(step.sent) + results, most_tokens(step.sent) + results

    # What is kept, and its size

    def _hold(self, turn: Turn) -> None:
        """Give an estimate to a turn that no engine has counted as it is."""
        texts = [turn.user, turn.answer] if turn.answer else [turn.user]
        sizes = [(self._estimate(text), most_tokens(text)) for text in texts]
        sizes += [self._step_size(step) for step in turn.steps]
        turn.tokens, turn.most = sum(likely for likely, _ in sizes), sum(most for _, most in sizes)
        turn.counted = False

    def _drop(self, count: int) -> list[Turn]:
        gone = self._history.drop(max(count, 0))
        self.dropped_turns += len(gone)
        self.dropped_tokens += sum(turn.tokens for turn in gone)
        return gone

    def _let_wait(self, gone: list[Turn]) -> None:
        """Keep dropped turns for their summary; of all that wait for one only the newest, since it may never come."""
        waiting, tokens = self.dropped + gone, 0
        for count, turn in enumerate(reversed(waiting)):
            tokens += max(turn.tokens, 1)
            if tokens > self.dropped_limit:
                waiting = waiting[len(waiting) - count :]
                break
        self.dropped = waiting

    def _estimate(self, text: str) -> int:
        return self._ratio.likely(text)

    def _is_plausible(self, usage: Usage) -> bool:
        # Some servers count only what their cache did not hold, or nothing for a prompt it held whole.
        return usage.prompt_tokens > self._history.counted * PLAUSIBLE

    def _learn(self, turn: Turn, usage: Usage) -> None:
        """Spread the engine's exact total over what was estimated: the new message and, once, the system prompt."""
        if self._history.slack:
            # The sum of all is known now, and with it that of those turns.
            for past in self._history.turns:
                past.counted = True
            self._history.recount()
        before = self._history.tokens
        head = self._head
        if head.tokens is None:
            # Both were estimated alike, so both were wrong by the same factor.
            likely, said = head.likely, turn.tokens + sum(self._step_size(step)[0] for step in turn.steps)
            head.tokens = max(0, usage.prompt_tokens - before) * likely // (likely + said)
        turn.counted = True
        turn.tokens = usage.prompt_tokens - before - head.tokens
        if turn.tokens < 0:
            self._give_back(turn)
        turn.tokens += usage.completion_tokens
        self._ratio.learn(head.bytes + self._history.bytes + turn.asked_bytes, usage.prompt_tokens)

    def _give_back(self, turn: Turn) -> None:
        """Take from what had been held for more than it is: the system prompt's share, turns, or the system prompt."""
        head = self._head
        assert head.tokens is not None
        given = max(0, min(head.tokens - head.likely, -turn.tokens))
        head.tokens -= given
        turn.tokens += given
        for past in reversed(self._history.turns):
            cut = min(past.tokens, -turn.tokens)
            past.tokens -= cut
            turn.tokens += cut
        if turn.tokens < 0:
            head.tokens, turn.tokens = head.tokens + turn.tokens, 0
        self._history.recount()


def _room(context_window: int) -> int:
    """Tokens of the window that may be used: all but a margin."""
    return context_window - int(context_window * MARGIN)


def _budget(context_window: int, max_tokens: int) -> int:
    """Tokens a prompt may have: the window less the answer and a margin.

    An answer as long as the window would leave no room to ask anything; half is then the prompt's.
    """
    return _room(context_window) - min(max_tokens, context_window // 2)
