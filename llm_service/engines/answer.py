"""What reading an answer's stream has in common in any protocol: where its text goes, its tool calls, its end."""

from time import monotonic

from llm_service.engines.think_tags import ThinkTags
from llm_service.engines.tool_calls import ToolCalls
from llm_service.generation import Finish, Sink, TakeDelta, Usage


class AnswerReader:
    """One answer for `sink`; `label` names the engine in errors. The rest of one that was `begun` has no reasoning.

    Deltas go to `_take`, which is the sink's own as soon as no tag of reasoning can follow.
    """

    __slots__ = ("_calls", "_label", "_sink", "_tags", "_take")

    def __init__(self, label: str, sink: Sink, *, begun: bool) -> None:
        self._label = label
        self._sink = sink
        # The rest of an answer begins with what it begins with, be it space.
        self._tags: ThinkTags | None = None if begun else ThinkTags(sink.take, self._settle)
        self._take: TakeDelta = sink.take if self._tags is None else self._tags.take
        self._calls: ToolCalls | None = None

    def _settle(self) -> None:
        self._take = self._sink.take
        self._tags = None

    def _calling(self) -> ToolCalls:
        """Take note that the answer goes on with a call of a tool; returns where its calls are joined."""
        self._sink.progress_at = monotonic()
        if self._calls is None:
            self._calls = ToolCalls(self._label)
        return self._calls

    def _end_text(self) -> None:
        """Give out what was held back of the text."""
        if self._tags is not None:
            self._tags.end()

    def _whole(self, usage: Usage | None, *, cut: bool) -> Finish:
        """Return how a whole answer ended; `cut` says that it was at its limit of tokens."""
        if self._calls is not None:
            return Finish("tool_calls", usage, self._calls.whole(cut=cut))
        return Finish("length" if cut else "stop", usage)
