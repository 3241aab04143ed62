"""One turn of a conversation: what the user said, the tools that were asked, and the answer. Pure."""

from collections.abc import Iterator

import msgspec

from llm_service.generation import Message, ToolCall


class ToolStep(msgspec.Struct):
    """The model asked for tools, having said `text`; `results` are by the calls' ids."""

    text: str
    calls: tuple[ToolCall, ...]
    results: dict[str, str] = {}

    @property
    def whole(self) -> bool:
        """Whether every call has its result."""
        return len(self.results) == len(self.calls)

    @property
    def sent(self) -> str:
        """All of its text that is in a prompt once it is whole, names of tools and arguments included."""
        called = (part for call in self.calls for part in (call.name, call.arguments, self.results.get(call.id, "")))
        return "".join((self.text, *called))

    def messages(self) -> Iterator[Message]:
        """The messages of a whole step: the calls, then their results."""
        yield Message("assistant", self.text, tool_calls=self.calls)
        for call in self.calls:
            yield Message("tool", self.results[call.id], tool_call_id=call.id, tool_name=call.name)


class Turn(msgspec.Struct):
    """A user message and its answer.

    `tokens` is the engine's count if it `counted`, else an estimate; `most` is what it has at most, while not counted.
    """

    user: str
    answer: str = ""
    interrupted: bool = False
    tokens: int = 0
    counted: bool = False
    most: int = 0
    steps: list[ToolStep] = []
    # What the assistant said before anything of it was cut: a later ack may tell that more was heard.
    _whole: tuple[list[ToolStep], str] | None = None

    @property
    def messages(self) -> int:
        """How many messages of the history it is."""
        own = 2 if self.answer else 1
        return own + sum(1 + len(step.calls) for step in self.steps) if self.steps else own

    @property
    def answered(self) -> bool:
        """Whether an assistant's message stands behind the user's."""
        return bool(self.answer or self.steps)

    @property
    def asked_bytes(self) -> int:
        """Its text in UTF-8 without the answer, tools included: what it adds to the prompt that is answered."""
        size = len(self.user.encode())
        return size + sum(len(step.sent.encode()) for step in self.steps) if self.steps else size

    @property
    def bytes(self) -> int:
        """All of its text in UTF-8."""
        return self.asked_bytes + len(self.answer.encode())

    @property
    def slack(self) -> int:
        """How many tokens more than `tokens` it may have."""
        return 0 if self.counted else max(0, self.most - self.tokens)

    def fold(self) -> None:
        """Forget calls that nothing was made of, but not what was said before them: the client was sent it.

        Those are calls without their results, and calls whose results nothing was said to: chat templates want an
        assistant's message between a tool's and the next user's.
        """
        while self.steps and not (self.answer and self.steps[-1].whole):
            self.answer = self.steps.pop().text + self.answer

    def cut(self, chars: int) -> None:
        """Let all that the assistant said, before its calls of tools as well, be no longer than this."""
        if self._whole is None:
            self._whole = self.steps, self.answer
        steps, answer = self._whole
        self.steps = []
        for step in steps:
            self.steps.append(msgspec.structs.replace(step, text=step.text[:chars]))
            chars = max(0, chars - len(step.text))
        self.answer = answer[:chars]
        self.fold()

    def reply(self) -> Iterator[Message]:
        """What stands behind the user's message."""
        for step in self.steps:
            yield from step.messages()
        if self.answer:
            yield Message("assistant", self.answer)
