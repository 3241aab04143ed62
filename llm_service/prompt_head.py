"""What stands before all turns of a prompt: system prompt, tools' schemas, a summary of what was dropped. Pure."""

from llm_service.token_estimate import TokenEstimate, fewest_tokens, most_tokens

SUMMARY_HEADING = "Summary of the conversation before this point:"


class PromptHead:
    """The head of one session's prompts.

    `tokens` is what an engine counted for it, None as long as none has counted it as it is; until then it is estimated
    by `ratio`. A `summary` can be left out of one turn's prompt, and is given up for good once that turn is kept.
    """

    __slots__ = (
        "_left_out",
        "_next_schemas",
        "_next_system_prompt",
        "_ratio",
        "_tokens_before",
        "model",
        "schemas",
        "summary",
        "system_prompt",
        "tokens",
    )

    def __init__(self, system_prompt: str, ratio: TokenEstimate) -> None:
        self._ratio = ratio
        self.system_prompt = self._next_system_prompt = system_prompt
        self.schemas = self._next_schemas = ""
        self.model = ""
        self.summary = ""
        self.tokens: int | None = None
        self._left_out = False
        self._tokens_before: int | None = None  # what it had with the summary that is left out

    @property
    def next_system_prompt(self) -> str:
        """The system prompt from the next turn on."""
        return self._next_system_prompt

    def change(self, system_prompt: str, *, schemas: str, model: str) -> None:
        """Be another from the next turn on: a new one is not to be taken for what an open turn's prompt was made with.

        Another `model` may have another tokenizer.
        """
        self._next_system_prompt, self._next_schemas = system_prompt, schemas
        if model != self.model:
            self.model = model
            self.tokens = None

    def begin_turn(self) -> None:
        """Take over what was changed since the last turn."""
        if (self._next_system_prompt, self._next_schemas) != (self.system_prompt, self.schemas):
            self.system_prompt, self.schemas = self._next_system_prompt, self._next_schemas
            self.tokens = None

    def restore(self, system_prompt: str, schemas: str, model: str, summary: str, tokens: int | None) -> None:
        """Take up where another left."""
        self.system_prompt = self._next_system_prompt = system_prompt
        self.schemas = self._next_schemas = schemas
        self.model, self.summary, self.tokens = model, summary, tokens

    # The summary

    def summarize(self, text: str) -> None:
        """Let this stand for what was dropped."""
        self.summary = text
        self.tokens = None

    def leave_out_summary(self) -> bool:
        """Make the open turn's prompt without the summary; returns whether that changes anything."""
        if not self.summary or self._left_out:
            return False
        self._left_out = True
        self._tokens_before, self.tokens = self.tokens, None
        return True

    def take_back_summary(self) -> None:
        """Have the summary again, if it was left out."""
        if self._left_out:
            self._left_out = False
            self.tokens = self._tokens_before

    def keep_as_sent(self) -> None:
        """Give the summary up that was left out of the prompt of a turn that is kept."""
        if self._left_out:
            self.summary, self._left_out = "", False

    # Text and size

    @property
    def text(self) -> str:
        """The system message of the open turn's prompt; empty: there is none."""
        return self._with_summary(self.system_prompt)

    @property
    def next_text(self) -> str:
        """The system message of the next turn's prompt."""
        return self._with_summary(self._next_system_prompt)

    @property
    def bytes(self) -> int:
        """All of it in UTF-8, schemas included."""
        return len((self.text + self.schemas).encode())

    @property
    def size(self) -> int:
        """Its tokens, schemas included: as counted, or else likely."""
        return self.likely if self.tokens is None else self.tokens

    @property
    def likely(self) -> int:
        """Its tokens as they are estimated."""
        schemas = self._ratio.likely(self.schemas) if self.schemas else 0
        return self._ratio.likely(self.text) + schemas

    @property
    def slack(self) -> int:
        """How many tokens more than `size` it may have."""
        if self.tokens is not None:
            return 0
        most = most_tokens(self.text) + (most_tokens(self.schemas) if self.schemas else 0)
        return max(0, most - self.size)

    @property
    def fewest(self) -> int:
        """The tokens that its text has at least."""
        return fewest_tokens(self.text)

    def _with_summary(self, system_prompt: str) -> str:
        if not self.summary or self._left_out:
            return system_prompt
        return "\n\n".join([*filter(None, [system_prompt]), f"{SUMMARY_HEADING}\n{self.summary}"])
