"""What a session asks of its connection; carried out in the order given."""

from dataclasses import dataclass

from llm_service.events import ServerEvent
from llm_service.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Send:
    """Say this event to the client."""

    event: ServerEvent


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask the engine, and feed what it says into this number's `taker`, then `finished` or `failed`."""

    response: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the generation of this number: nobody wants it any more."""

    response: int


Effect = Send | Generate | Stop
