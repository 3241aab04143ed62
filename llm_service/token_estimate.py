"""How many tokens a text has, before the engine has counted it. Pure.

Two figures: `likely`, by the bytes a token took in this very session, for deciding how much history to keep;
and `most`, which no tokenizer in use passes on text that people write, for never passing the window.
"""

import re

# Bytes of UTF-8 a token stands for before the engine has counted anything. English prose has about 4.5,
# Chinese about 4, code about 3: a guess on the low side trims early, a high one would overflow.
INITIAL_BYTES_PER_TOKEN = 3.0
# No tokenizer gets further on real text: what has more bytes than this for each token of the window cannot fit.
MOST_BYTES_PER_TOKEN = 8.0
# A template puts its own tokens around each message: role, start and end marks.
TOKENS_PER_MESSAGE = 5

# One odd turn (a page of code, another script) must not make the next estimate wild.
_BOUNDS = (1.0, 6.0)
# Letters of a word as people write them, behind a space, come at least two to a token. Everything else (digits,
# punctuation and the words that hang together by it, the bytes of other scripts, the letters of keys, hashes, codes and
# encoded files) may be a token each.
_WORD = re.compile(rb"(?:(?<= )|^)[A-Z]?[a-z]{1,15}(?![A-Za-z0-9])")
_NO_WORD = re.compile(rb"[bcdfghjklmnpqrstvwxz]{4}|^[^aeiouy]+$|[jqxzwv][bcdfghjklmnpqrtvwxz]", re.IGNORECASE)


class TokenEstimate:
    """The ratio of one session."""

    __slots__ = ("bytes_per_token",)

    def __init__(self) -> None:
        self.bytes_per_token = INITIAL_BYTES_PER_TOKEN

    def likely(self, text: str) -> int:
        """Tokens of a message with this text, its marks included."""
        return int(len(text.encode()) / self.bytes_per_token) + TOKENS_PER_MESSAGE

    def learn(self, text_bytes: int, tokens: int) -> None:
        """Take the engine's count of a whole prompt."""
        if text_bytes > 0:
            low, high = _BOUNDS
            self.bytes_per_token = min(max(text_bytes / tokens, low), high)

    def overflowed(self) -> None:
        """Take note that the engine found too long what was thought to fit."""
        self.bytes_per_token = max(0.5, self.bytes_per_token / 2)


def most_tokens(text: str) -> int:
    """Tokens that a message with this text has at most, its marks included."""
    data = text.encode()
    paired = sum(len(word) // 2 for word in _WORD.findall(data) if not _NO_WORD.search(word))
    return len(data) - paired + TOKENS_PER_MESSAGE


def roughly_most_tokens(text: str) -> int:
    """What `most_tokens` never passes, for a fraction of its cost: most messages fit by this already."""
    return len(text.encode()) + TOKENS_PER_MESSAGE


def said_tokens(text: str, deltas: int) -> int:
    """Tokens of an answer that came in so many deltas: one each, unless they are longer than tokens are.

    Some engines hand over several tokens at once: then it is a guess on the high side.
    """
    size = len(text.encode())
    return deltas if size <= deltas * MOST_BYTES_PER_TOKEN else int(size / INITIAL_BYTES_PER_TOKEN) + 1


def fewest_tokens(text: str) -> int:
    """Tokens that this text has at least."""
    return int(len(text.encode()) / MOST_BYTES_PER_TOKEN)
