"""Reasoning that stands in the answer between `<think>` and `</think>`: text in, reasoning and answer apart out.

Only reasoning before the first text of the answer is found; tags behind that text are text. And only where the tags
are there: with a template that begins the answer with `<think>` itself, the stream begins within the reasoning and
holds nothing but `</think>`. Whether that will come can't be known while the text is handed on, so that all of it is
the answer. Such a model needs an engine that tells reasoning apart itself, as vLLM does with --reasoning-parser and
llama-server with --reasoning-format.
"""

import re
from collections.abc import Callable

from llm_service.generation import Delta, TakeDelta

OPENING = "<think>"
CLOSING = "</think>"
# What is held back has a bound, in characters: of more than this nothing is waited for any longer.
MAX_HELD = 4096

_TAG = re.compile(f"{OPENING}|{CLOSING}")
# Models also begin with characters that have no width and are no white space to Python.
_SPACE = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]*")


class ThinkTags:
    """Stands before `take` until it is sure that no tag follows; then `settled` is called, once.

    Any number of blocks of reasoning at the beginning of an answer is told apart, with the white space around them,
    which is dropped. Tags within reasoning are text of it. Whoever calls this `take` calls the original one itself
    from `settled` on: each token after that costs what it did.
    """

    __slots__ = (
        "_bare",
        "_held",
        "_open",
        "_settled",
        "_step",
        "_take",
    )

    def __init__(self, take: TakeDelta, settled: Callable[[], None]) -> None:
        self._take = take
        self._settled = settled
        self._held = ""
        # How many tags wait for their closing one, and whether only space came after the last of them.
        self._open = 0
        self._bare = True
        # Called with the instance: a bound method here would be a cycle. Returns what the next step is to look at.
        self._step: Callable[[ThinkTags, str], str] = ThinkTags._begin

    def take(self, delta: Delta) -> None:
        """Take a delta of the answer and hand on what is certain."""
        if delta.thinking:
            # An engine that tells reasoning from the answer leaves no tags in the latter.
            if self._step is ThinkTags._begin:
                self._pass_on(self._held)
            self._take(delta)
        elif delta.text[:1].isalnum() and self._step is ThinkTags._begin and not self._held:
            # Nearly every answer begins with a word, and so without any tag.
            self._pass_on("")
            self._take(delta)
        else:
            self._look(delta.text)

    def end(self) -> None:
        """Give out what was held back; call it when the answer is over."""
        if self._step is ThinkTags._doubt:
            self._look(self._believe())
        held, self._held = self._held, ""
        if held:
            self._take(Delta(held, thinking=self._step is ThinkTags._think))

    def _look(self, text: str) -> None:
        while text:
            text = self._step(self, text)

    def _begin(self, text: str) -> str:
        held = self._held + text
        start = _without_space(held)
        if len(held) - len(start) > MAX_HELD:
            self._pass_on(held)
        elif start.startswith(OPENING):
            return self._enter(start)
        elif OPENING.startswith(start):
            self._held = held
        else:
            self._pass_on(held)
        return ""

    def _enter(self, text: str) -> str:
        self._held, self._step = "", ThinkTags._think
        self._open, self._bare = 1, True
        return text[len(OPENING) :]

    def _think(self, text: str) -> str:
        text, self._held = self._held + text, ""
        seen = 0
        for tag in _TAG.finditer(text):
            self._bare = self._bare and not _without_space(text[seen : tag.start()])
            seen = tag.end()
            if tag[0] == CLOSING:
                self._give_thought(text[: tag.start()])
                self._open -= 1
                self._step = ThinkTags._doubt if self._open else ThinkTags._follow
                return text[seen:]
            # One right behind another is the same said twice: by the template and by the model.
            if not self._bare:
                self._open += 1
                self._bare = True
        # A tag has one "<", so that no other place can be its beginning.
        start = text.rfind("<", seen)
        if start >= 0 and _may_become_tag(text[start:]):
            text, self._held = text[:start], text[start:]
        self._bare = self._bare and not _without_space(text[seen:])
        self._give_thought(text)
        return ""

    def _doubt(self, text: str) -> str:
        """Hold back what follows a closing tag after two opening ones.

        With another closing tag it was reasoning. Without, it is the answer: the reasoning only spoke of a tag.
        """
        self._held += text
        end = self._held.find(CLOSING)
        if 0 <= end <= MAX_HELD - len(CLOSING):
            thought, rest = self._held[:end], self._held[end + len(CLOSING) :]
            self._held = ""
            self._give_thought(CLOSING + thought)
            self._open += thought.count(OPENING) - 1
            if not self._open:
                self._step = ThinkTags._follow
            return rest
        return self._believe() if len(self._held) > MAX_HELD else ""

    def _believe(self) -> str:
        held, self._held, self._step = self._held, "", ThinkTags._follow
        return held

    def _follow(self, text: str) -> str:
        rest = _without_space(self._held + text)
        self._held = ""
        if rest.startswith(OPENING):
            return self._enter(rest)
        if rest.startswith(CLOSING):
            return rest[len(CLOSING) :]
        if _may_become_tag(rest):
            self._held = rest
        else:
            self._pass_on(rest)
        return ""

    def _give_thought(self, text: str) -> None:
        if text:
            self._take(Delta(text, thinking=True))

    def _pass_on(self, text: str) -> None:
        self._held = ""
        self._step = ThinkTags._text
        self._settled()
        if text:
            self._take(Delta(text))

    def _text(self, text: str) -> str:
        self._take(Delta(text))
        return ""


def _without_space(text: str) -> str:
    space = _SPACE.match(text)
    return text[space.end() :] if space else text


def _may_become_tag(text: str) -> bool:
    return OPENING.startswith(text) or CLOSING.startswith(text)
