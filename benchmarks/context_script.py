"""Of `python -m benchmarks context`: the conversation, which is the same for everyone, and a naive client's window."""

from collections.abc import Mapping, Sequence
from random import Random

from benchmarks.real_engines import WINDOW

TURNS = 60
MAX_TOKENS = 48
# A fact is told in every third turn.
FACT_EVERY = 3
SYSTEM_FACT = "the code word of this conversation is marigold"
SYSTEM_PROMPT = f"You are a helpful assistant who answers in one or two sentences. Remember: {SYSTEM_FACT}."
# What a client without a tokenizer takes a token for.
CHARACTERS_PER_TOKEN = 4

_COLOURS = ("amber", "silver", "green", "purple", "orange", "white", "yellow", "black", "brown", "golden")
_PEOPLE = ("the farmer", "my sister", "our teacher", "the captain", "an old painter", "the baker", "my neighbour")
_ACTS = ("carried", "found", "painted", "repaired", "forgot", "sold", "described", "borrowed", "cleaned", "measured")
_THINGS = (
    "basket",
    "lantern",
    "violin",
    "window",
    "letter",
    "kettle",
    "mirror",
    "ladder",
    "garden chair",
    "small boat",
)
_PLACES = (
    "near the harbour",
    "behind the station",
    "in the village",
    "beside the river",
    "at the market",
    "on the hill",
)
_TIMES = ("yesterday", "last winter", "before breakfast", "in the evening", "two weeks ago", "after the storm")
_QUESTIONS = (
    "What would you do next?",
    "Why do you think that happened?",
    "Can you tell me something more about that?",
    "How long should this take?",
    "What could be bought with the money?",
    "Which of these matters most?",
)

Message = Mapping[str, str]


def fact(turn: int) -> str:
    """Return what is told in the turn, or "" if it has none. Turns count from 1; no two facts are the same."""
    if turn % FACT_EVERY != 2:
        return ""
    return f"the code of box {turn + 15} is {_COLOURS[turn // FACT_EVERY % len(_COLOURS)]}"


def recent_fact(turn: int) -> str:
    """Return the fact that was told in one of the three turns before this one; "" before there was any."""
    told = (fact(earlier) for earlier in range(max(1, turn - FACT_EVERY), turn))
    return next((each for each in told if each), "")


def message(turn: int) -> str:
    """Return what the user says in the turn: 20 to 60 words, and the same each time."""
    chance = Random(turn)
    said = [_sentence(chance) for _ in range(chance.randint(2, 4))]
    if told := fact(turn):
        said.insert(chance.randrange(len(said)), f"Please note that {told}.")
    return " ".join([*said, chance.choice(_QUESTIONS)])


def _sentence(chance: Random) -> str:
    parts = (_TIMES, _PEOPLE, _ACTS, _THINGS, _PLACES)
    time, who, did, what, where = (chance.choice(part) for part in parts)
    return f"{time.capitalize()} {who} {did} the {what} {where}."


def fitting(messages: Sequence[Message], window: int = WINDOW, max_tokens: int = MAX_TOKENS) -> list[Message]:
    """Return what a naive client sends: the oldest single messages dropped, until an estimate of the rest fits.

    The system prompt and the newest message are kept: a client that loses those is no peer.
    """
    first, rest = messages[:1], list(messages[1:])
    room = (window - max_tokens) * CHARACTERS_PER_TOKEN - sum(len(each["content"]) for each in first)
    while len(rest) > 1 and sum(len(each["content"]) for each in rest) > room:
        del rest[0]
    return [*first, *rest]


def appended(turn: int, answer: str) -> str:
    """Return the text that the turn adds to a prompt of this model (ChatML): the last answer and the new message."""
    before = f"{answer}<|im_end|>\n" if turn > 1 else f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
    return f"{before}<|im_start|>user\n{message(turn)}<|im_end|>\n<|im_start|>assistant\n"
