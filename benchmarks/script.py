"""What the fake engine is to answer, written into the prompt itself.

So the load generator decides it for each answer, knows the exact text in advance, and no system under test
has to carry anything but the prompt.
"""

import re
from dataclasses import dataclass

# Every piece ends with the one space it holds, so that words can be counted in any frame, however many
# pieces a system put into it. Some need escapes in JSON or several bytes in UTF-8.
_WORDS = (
    "the of and to in that it was for on with as his they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these "
    'would other into has more her two like him see time could no make than first größer naïve "quoted" back\\slash '
    "日本語 Ελλάδα 🙂 it's 3.14 «mot» tab\tbed"
)
VOCABULARY = tuple(f"{word} " for word in _WORDS.split(" "))

FAULTS = ("", "cut", "reset", "end", "error", "garbage", "stall", "pieces", "refuse")

_PART = re.compile(r"(words|rate|ttft|seed|fault|after)=(\S+)")


@dataclass(frozen=True, slots=True)
class Script:
    """One answer: so many words, `rate` of them a second (0: all at once), the first after `ttft` seconds.

    `seed` names the answer: it chooses the words and finds the record of when they were sent. `fault`, if
    any, happens when `after` words were sent: the connection ends by "cut" or "reset", the answer without having
    an end ("end"), by an "error" or "garbage", nothing more comes ("stall"), or the next word comes in "pieces" and
    the rest as ever. "refuse" refuses the request.
    """

    words: int
    rate: float = 0.0
    ttft: float = 0.0
    seed: int = 0
    fault: str = ""
    after: int = 0

    @property
    def prompt(self) -> str:
        """The message that asks for this answer."""
        text = f"bench words={self.words} rate={self.rate:g} ttft={self.ttft:g} seed={self.seed}"
        return f"{text} fault={self.fault} after={self.after}" if self.fault else text

    def indices(self) -> range:
        """Where in the vocabulary the words stand, modulo its length."""
        first = self.seed * 7919
        # A step that shares no factor with the length visits the whole vocabulary.
        return range(first, first + self.words * _STEP, _STEP)

    def text(self) -> str:
        """The exact answer."""
        size = len(VOCABULARY)
        return "".join([VOCABULARY[index % size] for index in self.indices()])


_STEP = 37


def parse(prompt: str, default: Script) -> Script:
    """Read a prompt made by `Script.prompt`; what it leaves out is the default's.

    Raises:
        ValueError: there is no such fault.
    """
    parts = dict(_PART.findall(prompt))
    if (fault := parts.get("fault", default.fault)) not in FAULTS:
        raise ValueError(f"no such fault: {fault}; there are {', '.join(filter(None, FAULTS))}")
    return Script(
        words=int(parts.get("words", default.words)),
        rate=float(parts.get("rate", default.rate)),
        ttft=float(parts.get("ttft", default.ttft)),
        seed=int(parts.get("seed", default.seed)),
        fault=fault,
        after=int(parts.get("after", default.after)),
    )
