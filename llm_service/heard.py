"""Which answers may still be heard, how far that is told, and where each ends if the sound is stopped now. Pure.

Answers are heard in their order, so that a client's acks tell one place in all of them: what comes before it was
heard whole, and what comes behind it not at all.
"""

from collections.abc import Iterator

from llm_service.response import Response

# Answers that are remembered at most: so many lie behind each other only under `on_busy: queue`.
MOST = 16


class Heard:
    """The answers of a session that may still be heard, oldest first; the last one may be running.

    `stopped` says that their sound was: acks that come now tell how far it had got.
    """

    __slots__ = ("_answers", "_place", "stopped")

    def __init__(self) -> None:
        self._answers: list[Response] = []
        self._place: Response | None = None  # the answer that the last ack was of
        self.stopped = False

    @property
    def newest(self) -> Response | None:
        return self._answers[-1] if self._answers else None

    def begin(self, answer: Response, *, behind: bool) -> None:
        """Take note of the next answer; `behind` says that it is heard behind those before, which are not stopped."""
        if self.stopped or not behind:
            self._answers.clear()
            self._place = None
        self.stopped = False
        self._answers.append(answer)
        del self._answers[:-MOST]

    def undo(self, answer: Response) -> None:
        """Forget the newest answer: its turn is undone."""
        if self.newest is answer:
            self._answers.pop()

    def take(self, chunk: int | None, chars: int) -> bool:
        """Take an ack: `chars` of a chunk, or of the newest answer; returns whether that may still be heard."""
        answer, heard = self.newest, chars
        if chunk is not None:
            answer = next((each for each in self._answers if chunk in each.chunks), None)
            heard = answer.chunks[chunk].heard(chars) if answer is not None else 0
        if answer is None:
            return False
        answer.heard, self._place = heard, answer
        if not self.stopped:
            del self._answers[: self._at()]  # they were heard whole, and nothing can change that
        return True

    def ends(self) -> Iterator[tuple[Response, int]]:
        """Yield each answer with the number of its characters that were heard; none where nobody told.

        Of an answer behind one that was heard to its end nobody has told yet, and all of it counts.
        """
        at, place = self._at(), self._place
        if at is None or place is None:
            return
        end = place.heard_end or 0
        for index, answer in enumerate(self._answers):
            if index == at:
                yield answer, end
            else:
                yield answer, answer.chars if index < at or end >= place.chars else 0

    def _at(self) -> int | None:
        return next((index for index, each in enumerate(self._answers) if each is self._place), None)
