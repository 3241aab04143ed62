"""What the engine is asked so that it condenses dropped turns, and what of its answer is taken. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_service.generation import Message
from llm_service.token_estimate import most_tokens
from llm_service.turn import Turn

# Characters of one message that are condensed; a longer one is shown by its beginning and its end. Where the window
# has less room than that it is less, down to the least.
_LONGEST = 2000
_LEAST = 60
# Characters a token of a summary may have at most: what is longer is no summary.
_CHARS_PER_TOKEN = 8

# Of so many earlier turns one must be in a summary, and two turns in all: what speaks of one alone answers it.
_TURNS_A_TRACE = 4
# What a text is recognised by: the beginnings of its longer words, its numbers, and pairs of signs where words are not
# told apart by spaces.
_WORD = re.compile(r"[^\W\d_]+|\d+")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LEAST_LETTERS = 4

# What is condensed stands in one quoted piece, and the instruction behind it: a model that is shown the conversation
# as one it takes part in answers the user instead of condensing.
_OPEN, _CLOSE = "<conversation>\n", "\n</conversation>\n\n"
_SYSTEM = "You condense conversations that other people had. You take no part in them and answer nobody in them."
_TASK = (
    "Write down what must be remembered of this: facts, names, numbers, decisions, and what is still open. At most "
    "{words} words, in the third person. Write the summary and nothing else."
)


@dataclass(frozen=True, slots=True, eq=False)
class Condensation:
    """A request to condense `turns`, together with `before`, the summary of what went earlier.

    The turns are dropped, or soon will be. The summary may have `max_tokens`.
    """

    turns: tuple[Turn, ...]
    before: str
    messages: tuple[Message, ...]
    max_tokens: int


def condensation(dropped: Sequence[Turn], before: str, *, room: int, max_tokens: int) -> Condensation | None:
    """Return the request for as many dropped turns, from the first on, as fit into `room` tokens; None: none fits.

    `max_tokens` is what the summary may have.
    """
    head = f"What went before:\n{before}\n\n" if before else ""
    task = _TASK.format(words=max(20, max_tokens // 2))
    left = room - most_tokens(_SYSTEM) - most_tokens(f"{head}{_OPEN}{_CLOSE}{task}")
    told: list[str] = []
    for turn in dropped:
        text, longest = _told(turn, _LONGEST), _LONGEST
        while not told and most_tokens(text) > left and longest > _LEAST:
            longest //= 2
            text = _told(turn, longest)
        left -= most_tokens(text)
        if left < 0:
            break
        told.append(text)
    if not told:
        return None
    quoted = f"{head}{_OPEN}" + "\n".join(told) + f"{_CLOSE}{task}"
    messages = Message("system", _SYSTEM), Message("user", quoted)
    return Condensation(tuple(dropped[: len(told)]), before, messages, max_tokens)


def cleaned(text: str, condensed: Condensation) -> str:
    """Return the summary in an engine's answer, or "" if it is none.

    None is what is empty or longer than what it stands for, and what answers the user instead: it speaks of one
    question alone.
    """
    summary = text.strip().removeprefix("Summary:").strip()
    source = len(condensed.before) + sum(len(turn.user) + len(turn.answer) for turn in condensed.turns)
    if len(summary) > max(source, 80) or not _speaks_of_all(summary, condensed):
        return ""
    return _cut(summary, condensed.max_tokens * _CHARS_PER_TOKEN)


def _speaks_of_all(summary: str, condensed: Condensation) -> bool:
    """Whether there are traces of enough turns: of some before the last one, and of two where there are more."""
    *earlier, last = [_marks(f"{turn.user} {turn.answer}") for turn in condensed.turns]
    told = [marks for marks in (each - last for each in (_marks(condensed.before), *earlier)) if marks]
    found = _marks(summary)
    traces = sum(1 for marks in told if marks & found)
    of_last = bool(last.difference(*told, *earlier) & found)
    return len(told) <= _TURNS_A_TRACE * traces and traces + of_last >= min(2, len(told))


def _marks(text: str) -> set[str]:
    """Return what a text is recognised by."""
    marks: set[str] = set()
    for word in _WORD.findall(text.casefold()):
        if _UNSPACED.search(word):
            marks.update(map("".join, pairwise(word)))
        elif word.isdigit() or len(word) >= _LEAST_LETTERS:
            marks.add(word[:_LEAST_LETTERS] if word.isalpha() else word)
    return marks


def _told(turn: Turn, longest: int) -> str:
    lines = [f"User: {_shortened(turn.user, longest)}"]
    lines += [
        f"Tool {call.name}: {_shortened(step.results[call.id], longest)}" for step in turn.steps for call in step.calls
    ]
    if turn.answer:
        lines.append(f"Assistant: {_shortened(turn.answer, longest)}")
    return "\n".join(lines)


def _shortened(text: str, longest: int) -> str:
    # The quoted piece must not be ended from within, nor by what is left once its end has been taken out.
    while _CLOSE.strip() in text:
        text = text.replace(_CLOSE.strip(), "")
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} […] {text[-longest // 2 :]}"


def _cut(text: str, limit: int) -> str:
    """Cut at the end of a sentence, or of a word, where it is too long."""
    if len(text) <= limit:
        return text
    cut = text[:limit]
    for mark in (". ", " "):
        at = cut.rfind(mark)
        if at > limit // 2:
            return cut[: at + 1].rstrip()
    return cut
