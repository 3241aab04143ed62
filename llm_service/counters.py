"""What is counted of the sessions of one connection."""

from dataclasses import dataclass, fields
from typing import Self


@dataclass(slots=True)
class Counters:
    """What the sessions of one connection did; the service's totals are sums of these."""

    messages_received: int = 0
    messages_sent: int = 0
    tokens_generated: int = 0
    generations_completed: int = 0
    generations_cancelled: int = 0
    errors: int = 0
    turns: int = 0

    def add(self, other: Self) -> None:
        """Count what another counted, too."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def since(self, before: Self) -> Self:
        """Return what was counted since then."""
        return type(self)(
            **{field.name: getattr(self, field.name) - getattr(before, field.name) for field in fields(self)}
        )
