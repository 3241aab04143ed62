"""What a session asks of its connection; carried out in the order given."""

from dataclasses import dataclass

from llm_service.events import ServerEvent
from llm_service.generation import GenerationRequest
from llm_service.summary import Condensation


@dataclass(frozen=True, slots=True)
class Send:
    """Say this event to the client."""

    event: ServerEvent


@dataclass(frozen=True, slots=True)
class Count:
    """Have the engine count this text's tokens, and feed the number into `counted`."""

    response: int
    model: str
    text: str


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask the engine, and feed what it says into this number's `taker`, then `finished` or `failed`."""

    response: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the generation of this number: nobody wants it any more."""

    response: int


@dataclass(frozen=True, slots=True)
class Hush:
    """Speak no more of what was said so far: its client wants to hear something else, or nothing.

    With `response` only of the one of this number, which failed; those before it are heard on.
    """

    response: int | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """Take note that so many tokens of history were dropped."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Warm:
    """Have the engine read this prompt when no turn needs it; the newest one counts, and nothing comes of it."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class StopAsides:
    """Stop what was asked for beside the turns: nobody wants it any more."""


@dataclass(frozen=True, slots=True)
class Condense:
    """Ask the engine when no turn needs it, and feed all it says, "" or None into `condensed`."""

    job: Condensation
    request: GenerationRequest


Effect = Send | Count | Generate | Stop | Hush | Dropped | Warm | Condense | StopAsides
