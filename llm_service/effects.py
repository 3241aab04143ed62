"""What a session asks of its connection; carried out in the order given.

Msgspec structs, as some are made in every turn: a frozen dataclass costs five times as much.
"""

import msgspec

from llm_service.events import ServerEvent
from llm_service.generation import GenerationRequest
from llm_service.summary import Condensation


class Send(msgspec.Struct, frozen=True):
    """Say this event to the client."""

    event: ServerEvent


class Count(msgspec.Struct, frozen=True):
    """Have the engine count this text's tokens, and feed the number into `counted`."""

    response: int
    model: str
    text: str


class Generate(msgspec.Struct, frozen=True):
    """Ask the engine, and feed what it says into this number's `taker`, then `finished` or `failed`."""

    response: int
    request: GenerationRequest


class Stop(msgspec.Struct, frozen=True):
    """Close the generation of this number: nobody wants it any more."""

    response: int


class Hush(msgspec.Struct, frozen=True):
    """Speak no more of what was said so far: its client wants to hear something else, or nothing.

    With `response` only of the one of this number, which failed; those before it are heard on.
    """

    response: int | None = None


class Dropped(msgspec.Struct, frozen=True):
    """Take note that so many tokens of history were dropped."""

    tokens: int


class Warm(msgspec.Struct, frozen=True):
    """Have the engine read this prompt when no turn needs it; the newest one counts, and nothing comes of it."""

    request: GenerationRequest


class StopAsides(msgspec.Struct, frozen=True):
    """Stop what was asked for beside the turns: nobody wants it any more."""


class Condense(msgspec.Struct, frozen=True):
    """Ask the engine when no turn needs it, and feed all it says, "" or None into `condensed`."""

    job: Condensation
    request: GenerationRequest


Effect = Send | Count | Generate | Stop | Hush | Dropped | Warm | Condense | StopAsides
