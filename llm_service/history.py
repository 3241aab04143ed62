"""The finished turns of a conversation. Pure.

Their messages and sums are kept ready, so that a late turn costs no more than an early one.
"""

from collections.abc import Iterable, Iterator

from llm_service.generation import Message
from llm_service.turn import Turn


class History:
    """Turns, oldest first. The sums are those of all turns; `counted` is the tokens an engine has counted.

    `slack` is how many tokens more they may have.
    """

    __slots__ = ("_waiting", "bytes", "counted", "messages", "said", "slack", "tokens", "turns")

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.said: list[Message] = []
        self._waiting: list[str] = []
        self.tokens = self.counted = self.slack = self.bytes = self.messages = 0

    def append(self, turn: Turn) -> None:
        """Add the newest turn."""
        self.turns.append(turn)
        self._count(turn)
        if turn.answered:
            self.said.append(Message("user", self.joined(turn.user)))
            self.said.extend(turn.reply())
            self._waiting = []
        else:
            self._waiting = [*self._waiting, turn.user]

    def drop(self, count: int) -> list[Turn]:
        """Take turns away from the front, and return them."""
        gone = self.turns[:count]
        if gone:
            del self.turns[:count]
            self.changed()
        return gone

    def changed(self) -> None:
        """Take note that a turn is not what it was when it was added."""
        self.said, self._waiting = _said(self.turns)
        self.recount()

    def recount(self) -> None:
        """Take note that turns have other sizes than when they were added."""
        self.tokens = self.counted = self.slack = self.bytes = self.messages = 0
        for turn in self.turns:
            self._count(turn)

    def joined(self, user: str) -> str:
        """Return the text of a user who said this next.

        Users whose answer was cancelled before its first word speak twice in a row, and many chat templates
        refuse that: their messages become one.
        """
        return "\n".join([*self._waiting, user]) if self._waiting else user

    def without(self, count: int) -> "History":
        """Return what is left without so many turns from the front."""
        if not count:
            return self
        rest = History()
        rest.turns = self.turns[count:]
        rest.changed()
        return rest

    def _count(self, turn: Turn) -> None:
        self.tokens += turn.tokens
        self.counted += turn.tokens if turn.counted else 0
        self.slack += turn.slack
        self.bytes += turn.bytes
        self.messages += turn.messages


def _said(turns: Iterable[Turn]) -> tuple[list[Message], list[str]]:
    """Return the messages of these turns, and what users said at their end that nothing answered."""
    waiting: list[str] = []

    def spoken() -> Iterator[Message]:
        for turn in turns:
            waiting.append(turn.user)
            if turn.answered:
                yield Message("user", "\n".join(waiting))
                yield from turn.reply()
                waiting.clear()

    return list(spoken()), waiting
