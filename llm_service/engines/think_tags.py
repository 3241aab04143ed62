"""Reasoning that stands in the answer between `<think>` and `</think>`: text in, reasoning and answer apart out."""

from collections.abc import Callable

from llm_service.generation import Delta, TakeDelta

OPENING = "<think>"
CLOSING = "</think>"
# What is held back has a bound: an answer that begins with more white space than this is taken as it is.
MAX_SPACE = 64


class ThinkTags:
    """Stands before `take` until it is sure that no tag follows; then `settled` is called, once.

    Only the beginning of an answer is looked at, after white space, which is dropped with the tag. Whoever calls
    this `take` calls the original one itself from `settled` on: each token after that costs what it did.
    """

    __slots__ = (
        "_held",
        "_settled",
        "_step",
        "_take",
    )

    def __init__(self, take: TakeDelta, settled: Callable[[], None]) -> None:
        self._take = take
        self._settled = settled
        self._held = ""
        # Called with the instance: a bound method here would be a cycle.
        self._step: Callable[[ThinkTags, str], None] = ThinkTags._begin

    def take(self, delta: Delta) -> None:
        """Take a delta of the answer and hand on what is certain."""
        if delta.thinking:
            # An engine that tells reasoning from the answer leaves no tags in the latter.
            if self._step is ThinkTags._begin:
                self._pass_on(self._held)
            self._take(delta)
        else:
            self._step(self, delta.text)

    def end(self) -> None:
        """Give out what was held back; call it when the answer is over."""
        held, self._held = self._held, ""
        if held:
            self._take(Delta(held, thinking=self._step is ThinkTags._think))

    def _begin(self, text: str) -> None:
        held = self._held + text
        start = held.lstrip()
        if len(held) - len(start) > MAX_SPACE:
            self._pass_on(held)
        elif start.startswith(OPENING):
            self._held, self._step = "", ThinkTags._think
            self._think(start[len(OPENING) :])
        elif OPENING.startswith(start):
            self._held = held
        else:
            self._pass_on(held)

    def _think(self, text: str) -> None:
        thought, tag, rest = (self._held + text).partition(CLOSING)
        self._held = ""
        if tag:
            self._step = ThinkTags._follow
        else:
            # The tag has one "<", so that no other place can be its beginning.
            start = thought.rfind("<")
            if start >= 0 and CLOSING.startswith(thought[start:]):
                thought, self._held = thought[:start], thought[start:]
        if thought:
            self._take(Delta(thought, thinking=True))
        if tag:
            self._follow(rest)

    def _follow(self, text: str) -> None:
        answer = text.lstrip()
        if answer:
            self._pass_on(answer)

    def _pass_on(self, text: str) -> None:
        self._held = ""
        self._settled()
        if text:
            self._take(Delta(text))
