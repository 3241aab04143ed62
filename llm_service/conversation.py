"""What was said in a session, and what of it goes into the next prompt.

Pure: no clock, no I/O. Tokens are counted by the engine: after each turn the conversation learns the exact
size of its prompt, and only what has not been through the engine yet is estimated, by the bytes a token
took in this very session.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llm_service.errors import ContextOverflow
from llm_service.generation import Message, Usage

# Bytes of UTF-8 a token stands for before the engine has counted anything. English prose has about 4.5,
# Chinese about 4, code about 3: a guess on the low side trims early, a high one would overflow.
INITIAL_BYTES_PER_TOKEN = 3.0
# No tokenizer gets further on real text: what has more bytes than this for each token of the window cannot fit.
MOST_BYTES_PER_TOKEN = 8.0
# A template puts its own tokens around each message: role, start and end marks.
TOKENS_PER_MESSAGE = 5
# Kept free for what estimates and templates get wrong, as a share of the window.
MARGIN = 1 / 64
# A trim drops turns down to this share of the budget, so that the next many prompts begin with the same
# bytes: an engine reuses its KV cache only for an unchanged prefix.
LOW_WATER = 0.5
# A count below this share of what was counted before is no count of the whole prompt.
PLAUSIBLE = 0.25


@dataclass(slots=True)
class Turn:
    """A user message and its answer. `tokens` is the engine's count if it `counted`, else an estimate."""

    user: str
    answer: str = ""
    interrupted: bool = False
    tokens: int = 0
    counted: bool = False

    @property
    def messages(self) -> int:
        """How many messages of the history it is."""
        return 2 if self.answer else 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages of one request, their size in tokens, and how many turns were dropped to make them fit."""

    messages: tuple[Message, ...]
    tokens: int
    dropped_turns: int


class Conversation:
    """The turns of one session, oldest first.

    A turn is opened by `begin` and ended by exactly one of `commit` and `rollback`; between the two the
    history seen by `turns` is what it was before.
    """

    def __init__(self, *, system_prompt: str = "", max_messages: int) -> None:
        self._system_prompt = system_prompt
        self._max_messages = max_messages
        # A new one must not be taken for the one that the open turn's prompt was counted with.
        self._next_system_prompt = system_prompt
        self._turns: list[Turn] = []
        self._open: Turn | None = None
        # Turns, from the front, that the open turn's prompt left out: gone once it is committed.
        self._to_drop = 0
        self._system_tokens: int | None = None
        self._bytes_per_token = INITIAL_BYTES_PER_TOKEN
        self.dropped_turns = 0

    def __repr__(self) -> str:
        state = "open turn" if self._open is not None else "no open turn"
        return f"<Conversation: {len(self._turns)} turns, {state}, {self.dropped_turns} dropped>"

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The finished turns that are kept."""
        return tuple(self._turns)

    @property
    def messages_kept(self) -> int:
        """User and assistant messages in the history; the system prompt is not one of them."""
        return sum(turn.messages for turn in self._turns)

    @property
    def system_prompt(self) -> str:
        """What stands before all turns from the next one on; empty means none."""
        return self._next_system_prompt

    def set_system_prompt(self, text: str) -> None:
        """Change the system prompt from the next turn on."""
        self._next_system_prompt = text

    def begin(self, text: str, *, context_window: int, max_tokens: int, engine_counts: bool = False) -> Prompt:
        """Open a turn with what the user said and return the prompt that asks for its answer.

        Whole turns are dropped from the front when the window or the longest allowed history is passed;
        the system prompt and the new message never are.

        Raises:
            ContextOverflow: the new message does not fit into the window even alone; no turn is open then. With
                `engine_counts`, where the engine refuses what is too long for this window, only if it cannot fit:
                estimates err, and the engine does not.
        """
        if self._open is not None:
            raise RuntimeError("the last turn was neither committed nor rolled back")
        if self._next_system_prompt != self._system_prompt:
            self._system_prompt = self._next_system_prompt
            self._system_tokens = None
        turn = Turn(user=text, tokens=self._estimate(text))
        needed, limit = self._system_size() + turn.tokens, context_window - int(context_window * MARGIN)
        if engine_counts:
            needed = int(len((self._system_prompt + text).encode()) / MOST_BYTES_PER_TOKEN)
        if needed > limit:
            raise ContextOverflow(
                f"the message and the system prompt need {'more than' if engine_counts else 'about'} {needed} tokens, "
                f"and the context window has {context_window}; send a shorter message"
            )
        self._to_drop = self._turns_to_drop(turn, _budget(context_window, max_tokens))
        self._open = turn
        return Prompt(messages=tuple(self._messages(turn)), tokens=self._size(turn), dropped_turns=self._to_drop)

    def commit(self, answer: str, *, interrupted: bool = False, usage: Usage | None = None) -> None:
        """End the open turn with its answer; `usage` is the engine's count of that prompt and answer."""
        turn = self._take_open()
        turn.answer = answer
        turn.interrupted = interrupted
        del self._turns[: self._to_drop]
        self.dropped_turns += self._to_drop
        self._to_drop = 0
        if usage is not None and self._is_plausible(usage):
            self._learn(turn, usage)
        else:
            turn.tokens += self._estimate(answer)
        self._turns.append(turn)

    def rollback(self) -> None:
        """Forget the open turn: the history is what it was before, ready for the same message again."""
        self._take_open()
        self._to_drop = 0

    def overflowed(self) -> None:
        """Learn from an engine that found the open turn's prompt too long: the next try leaves more of it out."""
        self._bytes_per_token = max(0.5, self._bytes_per_token / 2)

    def _take_open(self) -> Turn:
        if self._open is None:
            raise RuntimeError("no turn is open")
        turn, self._open = self._open, None
        return turn

    def _messages(self, turn: Turn) -> Iterator[Message]:
        if self._system_prompt:
            yield Message("system", self._system_prompt)
        waiting: list[str] = []
        for past in self._turns[self._to_drop :]:
            waiting.append(past.user)
            if past.answer:
                # Users whose answer was cancelled before its first word speak twice in a row, and many
                # chat templates refuse that: their messages become one.
                yield Message("user", "\n".join(waiting))
                yield Message("assistant", past.answer)
                waiting = []
        waiting.append(turn.user)
        yield Message("user", "\n".join(waiting))

    def _turns_to_drop(self, turn: Turn, budget: int) -> int:
        size, messages = self._size(turn), self.messages_kept + 1
        if size <= budget and messages <= self._max_messages:
            return 0
        for count, past in enumerate(self._turns):
            if size <= budget * LOW_WATER and messages <= self._max_messages * LOW_WATER:
                return count
            size -= past.tokens
            messages -= past.messages
        return len(self._turns)

    def _size(self, turn: Turn) -> int:
        return self._system_size() + sum(past.tokens for past in self._turns[self._to_drop :]) + turn.tokens

    def _system_size(self) -> int:
        if self._system_tokens is not None:
            return self._system_tokens
        return self._estimate(self._system_prompt)

    def _estimate(self, text: str) -> int:
        return int(len(text.encode()) / self._bytes_per_token) + TOKENS_PER_MESSAGE

    def _is_plausible(self, usage: Usage) -> bool:
        # Some servers count only what their cache did not hold, or nothing for a prompt it held whole.
        known = sum(past.tokens for past in self._turns if past.counted)
        return usage.prompt_tokens > known * PLAUSIBLE

    def _learn(self, turn: Turn, usage: Usage) -> None:
        """Spread the engine's exact total over what was estimated: the new message and, once, the system prompt."""
        turn.counted = True
        before = sum(past.tokens for past in self._turns)
        if self._system_tokens is None:
            # Both were estimated alike, so both were wrong by the same factor.
            head = self._system_size()
            self._system_tokens = max(0, usage.prompt_tokens - before) * head // (head + turn.tokens)
        turn.tokens = usage.prompt_tokens - before - self._system_tokens
        # Less than none is left where turns that were never counted (interrupted ones), or the system prompt,
        # had been taken for more than they are.
        for past in reversed(self._turns):
            cut = min(past.tokens, max(0, -turn.tokens))
            past.tokens -= cut
            turn.tokens += cut
        if turn.tokens < 0:
            self._system_tokens, turn.tokens = self._system_tokens + turn.tokens, 0
        turn.tokens += usage.completion_tokens
        prompt_bytes = len(self._system_prompt.encode()) + len(turn.user.encode())
        prompt_bytes += sum(len(past.user.encode()) + len(past.answer.encode()) for past in self._turns)
        if prompt_bytes > 0:
            measured = prompt_bytes / usage.prompt_tokens
            # One odd turn (a page of code, another script) must not make the next estimate wild.
            self._bytes_per_token = min(max(measured, 1.0), 6.0)


def _budget(context_window: int, max_tokens: int) -> int:
    """Tokens a prompt may have: the window less the answer and a margin.

    An answer as long as the window would leave no room to ask anything; half is then the prompt's.
    """
    answer = min(max_tokens, context_window // 2)
    return context_window - answer - int(context_window * MARGIN)
