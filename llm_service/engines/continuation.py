"""The rest of an answer whose beginning one engine said, from another. Pure.

The other one gets the conversation with what was said already as the last message, an assistant's, and goes on behind
its last word. That is asked only of engines that were seen to leave such a message open (`Engine.continues`).
"""

import msgspec

from llm_service.engines.think_tags import OPENING
from llm_service.generation import Delta, Finish, GenerationRequest, Message, Sink, TakeDelta
from llm_service.token_estimate import said_tokens


class Continuation:
    """What is left of one answer: `request` asks for it, `sink` takes it, `whole` makes one end of both parts.

    `said` is the part that is there.
    """

    __slots__ = ("_limit", "_original", "_space", "_tokens", "request", "said", "sink")

    def __init__(self, request: GenerationRequest, said: str, sink: Sink) -> None:
        self.said = said
        prefix = said.rstrip()
        # White space at the end belongs to the next token, and templates drop it.
        self._space = said[len(prefix) :]
        self._tokens = said_tokens(said, len(sink.times))
        self._original = sink
        messages = (*request.messages, Message("assistant", prefix)) if prefix else request.messages
        self._limit = request.sampling.max_tokens
        self.request = self._bounded(msgspec.structs.replace(request, messages=messages))
        self.sink = Sink(self._taker(sink.take), [])

    @classmethod
    def of(cls, request: GenerationRequest, sink: Sink) -> "Continuation | None":
        """Return that of an answer whose engine broke off; None if nobody could go on with it.

        Reasoning is lost with the engine, and so is a tool call that it may have begun.
        """
        said = None if request.tools or sink.said is None else sink.said()
        return None if said is None else cls(request, said, sink)

    def counted(self, request: GenerationRequest, tokens: int) -> GenerationRequest:
        """Return `request` for as many tokens as are left by an engine's count of what was said.

        Another tokenizer may need fewer than the one that said it, which is what the client's limit was for.
        """
        self._tokens = max(tokens, len(self._original.times))
        return self._bounded(request)

    def whole(self, finish: Finish) -> Finish:
        """Return the end of the whole answer: what was said before counts to it, and not to the prompt."""
        if finish.usage is None:
            return finish
        usage = msgspec.structs.replace(
            finish.usage,
            prompt_tokens=max(0, finish.usage.prompt_tokens - self._tokens),
            completion_tokens=finish.usage.completion_tokens + self._tokens,
        )
        return msgspec.structs.replace(finish, usage=usage)

    def _bounded(self, request: GenerationRequest) -> GenerationRequest:
        sampling = msgspec.structs.replace(request.sampling, max_tokens=max(1, self._limit - self._tokens))
        return msgspec.structs.replace(request, sampling=sampling)

    def _taker(self, take: TakeDelta) -> TakeDelta:
        def go_on(delta: Delta) -> None:
            if self._space and not delta.thinking:
                text = self._without_space(delta.text)
                if not text:
                    return
                delta = Delta(text)
            take(delta)
            self.sink.times.append(self._original.times[-1])

        return go_on

    def _without_space(self, text: str) -> str:
        """Leave out what was said already of the space that a continuation begins with."""
        same = 0
        for char, said in zip(text, self._space, strict=False):
            if char != said:
                break
            same += 1
        self._space = self._space[same:] if same == len(text) else ""
        return text[same:]


def left_open(rendered: str, prefix: str) -> bool:
    """Whether a prompt that ends with this assistant message has the model go on right behind it.

    One that opens reasoning before it would have the model reason on.
    """
    return rendered.endswith(prefix) and not rendered.removesuffix(prefix).rstrip().endswith(OPENING)
