"""Has what a conversation dropped condensed, one request at a time. Pure."""

from llm_service.conversation import Conversation
from llm_service.session_defaults import Choices
from llm_service.summary import Condensation, cleaned, condensation

# Summaries that come to nothing, in a row, before turns that are kept are left to the trim, and dropped ones let go.
MAX_FAILED = 3
# Share of the high mark past which history is condensed, before a turn has to drop it; it stays until that is done.
EARLY = 0.8
# A summary has this part of the window at most.
SUMMARY_SHARE = 8


class Condenser:
    """Of one conversation. `max_tokens` is what a summary may have in a window that is large enough."""

    __slots__ = ("_answer", "_conversation", "_early", "_failed", "_job", "_max_tokens", "_skipped_at")

    def __init__(self, conversation: Conversation, *, max_tokens: int) -> None:
        self._conversation = conversation
        self._max_tokens = max_tokens
        self._job: Condensation | None = None
        self._answer: tuple[Condensation, str] | None = None
        self._failed = 0  # in a row
        self._early = True
        self._skipped_at: int | None = None  # how many turns had been dropped when the engine was not to be asked

    def answered(self, job: Condensation, text: str) -> None:
        """Take what the engine said; it counts from the next `settle` on, and only for the history it was made of."""
        if job is self._job:
            self._job = None
            self._answer = (job, text)

    def skipped(self, job: Condensation) -> None:
        """Take note that the engine is not to be asked for this: nothing is, until more turns are dropped."""
        if job is self._job:
            self._job = None
            self._skipped_at = self._conversation.dropped_turns

    def settle(self) -> None:
        """Let the summary stand that is ready, if any; no turn may be open."""
        if self._answer is None:
            return
        job, text = self._answer
        self._answer = None
        summary = cleaned(text, job)
        if summary and self._conversation.condensed(job, summary):
            self._failed, self._early = 0, True
            return
        self._failed += 1
        if self._failed >= MAX_FAILED:
            self._let_go()

    def forget(self) -> None:
        """Take no summary any more of what is being condensed, and let go what waits."""
        self._job = self._answer = None
        self._failed, self._early = 0, True
        self._conversation.dropped.clear()

    def _let_go(self) -> None:
        # Until a summary has come out well again only what is dropped is tried: what is kept may stay.
        self._failed, self._early = 0, False
        self._conversation.dropped.clear()

    def next(self, choices: Choices) -> Condensation | None:
        """Return what is to be condensed now; None: nothing. No turn may be open."""
        if self._job is not None or not choices.summarizes:
            return None
        conversation = self._conversation
        if self._skipped_at == conversation.dropped_turns:
            return None
        turns = conversation.dropped
        if self._early:
            turns = conversation.condensable(
                EARLY, context_window=choices.window, max_tokens=choices.sampling.max_tokens
            )
        longest = min(self._max_tokens, choices.window // SUMMARY_SHARE)
        room = choices.window - longest
        self._job = condensation(turns, conversation.summary, room=room, max_tokens=longest)
        if self._job is None and turns:
            self._let_go()  # the window has no room to read them in
        return self._job
