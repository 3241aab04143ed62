"""What becomes of text that is not for the ear, and what that looks like: the words of the other two."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args, get_type_hints


@dataclass(frozen=True, slots=True)
class SpeechRules:
    """What becomes of text that is not for the ear.

    `omit` leaves it out, `read` gives it to the voice (without its marks), `host` says a URL's host alone.
    `code_block_words` are said in place of a code block that is left out; by default nothing is.
    """

    code_blocks: Literal["omit", "read"] = "omit"
    code_block_words: str = ""
    inline_code: Literal["omit", "read"] = "read"
    tables: Literal["omit", "read"] = "read"
    urls: Literal["omit", "host", "read"] = "host"
    emoji: Literal["omit", "read"] = "omit"
    formulas: Literal["simple", "omit", "read"] = "simple"
    """Of LaTeX's formulas `simple` says those without commands, powers and braces, and leaves out the others."""
    footnotes: Literal["omit", "read"] = "omit"
    reasoning: Literal["omit", "read"] = "omit"
    markdown: bool = True
    """False reads the text as plain text: only URLs, emoji and reasoning keep their rules."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `rule=value` pairs with semicolons between, as in `urls=omit; code_block_words=See the screen.`.

        Raises ValueError, with what would do, for what is no rule and no value of it.
        """
        kinds = get_type_hints(cls)
        chosen: dict[str, Any] = {}
        for part in filter(None, map(str.strip, text.split(";"))):
            name, equals, value = (word.strip() for word in part.partition("="))
            if name not in kinds or not equals:
                raise ValueError(f"each rule is NAME=VALUE, with semicolons between; the names are {', '.join(kinds)}")
            choices = ("true", "false") if kinds[name] is bool else get_args(kinds[name])
            if choices and value not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}")
            chosen[name] = value == "true" if kinds[name] is bool else value
        return cls(**chosen)


class Piece(NamedTuple):
    """A stretch of the response and what is said for it.

    `spoken` is what is said, `raw` how many characters of the response that is for; equal lengths run in step.
    `ends` says that a sentence is over before this piece, whatever the words are (a line of a list, a paragraph).
    """

    spoken: str
    raw: int
    ends: bool = False
