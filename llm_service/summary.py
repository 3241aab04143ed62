"""What the engine is asked so that it condenses dropped turns, and what of its answer is taken. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_service.generation import Message
from llm_service.token_estimate import most_tokens
from llm_service.turn import Turn

# Characters of one message that are condensed; a longer one is shown by its beginning and its end. Where the window
# has less room than that it is less, down to the least.
_LONGEST = 2000
_LEAST = 60
# Characters a token of a summary may have at most: what is longer is no summary.
_CHARS_PER_TOKEN = 8

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

    The turns are dropped, or soon will be.
    """

    turns: tuple[Turn, ...]
    before: str
    messages: tuple[Message, ...]


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
    return Condensation(tuple(dropped[: len(told)]), before, (Message("system", _SYSTEM), Message("user", quoted)))


def cleaned(text: str, condensed: Condensation, *, max_tokens: int) -> str:
    """Return the summary in an engine's answer, or "" if it is none: empty, or longer than what it stands for."""
    summary = text.strip().removeprefix("Summary:").strip()
    source = len(condensed.before) + sum(len(turn.user) + len(turn.answer) for turn in condensed.turns)
    if len(summary) > max(source, 80):
        return ""
    return _cut(summary, max_tokens * _CHARS_PER_TOKEN)


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
