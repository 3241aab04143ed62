"""Where a sentence or a clause may end in running text, in any language.

`sentencex` knows abbreviations, numbers and quotes of some thirty languages; what it is asked, and with how much of
what follows, is fixed here, so that the answer is the same however the text arrives.
"""

import re
from enum import Enum, auto
from itertools import accumulate

import sentencex

_TERMINATORS = ".!?…؟۔։።፧‼⁇⁈⁉"
_FULL_TERMINATORS = "。！？．｡।॥။៕"  # no space follows these
_CLAUSE_MARKS = ",;:،؛"
_FULL_CLAUSE_MARKS = "，、；："
_CLOSERS = "\"'”’»›)\\]」』）】〉》"
_REVERSED = "“‘«‹"  # openers, and closers in German: only without a space before them
_OPENERS = "\"'“„‘‚«‹»(\\[¿¡"

# What may be an end: longest runs bounded, so that each is decided within a few characters.
CANDIDATE = re.compile(
    rf"[{_FULL_TERMINATORS}]{{1,8}}[{_CLOSERS}]{{0,4}}"
    rf"|[{_TERMINATORS}{_FULL_TERMINATORS}]{{1,8}}(?:[{_CLOSERS}{_REVERSED}*]{{1,4}}|[ \u00a0\u202f]»)?"
    rf"|[{_CLAUSE_MARKS}{_FULL_CLAUSE_MARKS}][{_CLOSERS}]{{0,2}}"
    r"|—|(?<= )–(?= )|(?<= )-(?= )"
    r"|(?<=[\u0e01-\u0eff\u1780-\u17dd\u1000-\u109f])(?= )"
)
_LONGEST_GAP = 32  # white space between two sentences
_LONGEST_WORD = 30  # of the word after an end; sentencex looks no farther
_LONGEST_OPENING = 4  # quotes, brackets and dashes before that word
_OPENING = re.compile(rf"[{_OPENERS}]{{1,{_LONGEST_OPENING}}}[ \u00a0\u202f]?")
_DASH = re.compile(rf"[—–-]{{1,{_LONGEST_OPENING}}}\s?")
_LONGEST_HEAD = 60  # characters before an end that sentencex is shown, from a word's beginning on
_MOST_STOPS = 8  # in that: what has more is no sentence, and each costs
# sentencex panics at some white space that isn't ASCII, and takes no lone surrogates.
_ODD = re.compile(r"[^\S\n ]|[\ud800-\udfff]")
# It compiles a large regular expression at each full stop of these: milliseconds in which the process stands.
_KIN = {"da": "de", "ca": "es", "oc": "fr"}
_WORD_END = re.compile(r"\s")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_INITIAL = re.compile(r"(?<!\w)[A-ZÀ-Þ]\.$")
_MORE_ABBREVIATIONS = re.compile(
    r"(?<!\w)(?:Ms|Mx|Dr|Prof|Messrs|approx|MM|Mme|Mlle|Mgr|env|bzw|vgl|ggf|inkl|Fa|Dhr|Mevr|Drs|[Hh]r|bl\.a|f\.eks|[Ss]ig|[Dd]ott|[Aa]vv|[Ii]ng|[Ss]igg)\.$"
)
# Vowel signs are no word characters to `re`. A lone letter of Arabic is an initial, or a title.
_ABBREVIATIONS_BY_SCRIPT = re.compile(
    r"(?<![\u0900-\u0963])(?:डॉ|श्री|सुश्री|श्रीमती|रु|पं|प्रो|स्व|कु|ले|कि\.मी|से\.मी|कि\.ग्रा|ई\.पू)\.$"
    r"|(?<![\u0600-\u06ff])[\u0621-\u064a]\.$"
    # Thai ends nothing with a full stop but abbreviations: consonants alone, as in พ.ศ.
    r"|(?<![\u0e01-\u0e4e.])(?:[\u0e01-\u0e2e]{1,3}\.){1,4}$"
)
_BEFORE_NUMBER = re.compile(
    r"(?<!\w)(?:[Cc]h|[Vv]ols?|[Ee]qs?|[Ss]ecs?|[Ff]igs?|[Ee]st|Art|Pt|Mon|Tues?|Wed|Thurs?|Thu|Fri|Sat|Sun)\.$"
)
_ORDINAL = re.compile(r"(?<![\d.,:/])\d{1,2}\.$")
_ORDINAL_LANGUAGES = {"de", "da", "no", "nb", "nn", "fi", "cs", "sk", "hu", "hr", "sl", "sr", "tr", "et", "lv", "is"}
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,3}[.)]$")
_DOMAIN = re.compile(r"\w{3,}\.[a-zA-Z]{2,}\.$")
_SCRIPTS = (
    (0x0370, 0x03FF, ("el",)),
    (0x0400, 0x052F, ("ru", "uk")),
    (0x0530, 0x058F, ("hy",)),
    (0x0600, 0x06FF, ("ar",)),
    (0x0900, 0x097F, ("hi", "mr")),
    (0x0980, 0x09FF, ("bn",)),
    (0x0A00, 0x0A7F, ("pa",)),
    (0x0A80, 0x0AFF, ("gu",)),
    (0x0B80, 0x0BFF, ("ta",)),
    (0x0C00, 0x0C7F, ("te",)),
    (0x0C80, 0x0CFF, ("kn",)),
    (0x0D00, 0x0D7F, ("ml",)),
)
_LATIN = ("en", "de", "fr", "es")
_WRITTEN_IN_LATIN = {*_LATIN, "it", "pt", "nl", "da", "ca", "fi", "pl", "sk", "no", "nb", "sv", "cs", "tr"}
# How many words of English take as long to say as one character of these: ideographs, Hangul, kana, Thai and its kin.
_CHARACTERS = (
    (re.compile(r"[\u3400-\u9fff\uf900-\ufaff]"), 0.75),
    (re.compile(r"[\uac00-\ud7af]"), 0.5),
    (re.compile(r"[\u3040-\u30ff]"), 0.4),
    (re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"), 0.25),
)


class Boundary(Enum):
    """What is at a candidate: the end of a sentence or of a clause, nothing, or what only more text can say."""

    SENTENCE = auto()
    CLAUSE = auto()
    NONE = auto()
    UNDECIDED = auto()


def judge(text: str, sentence: int, candidate: re.Match[str], language: str | None, *, last: bool) -> Boundary:
    """Say what a match of `CANDIDATE` in `text` is.

    `sentence` is where the sentence it stands in begins; with `last` nothing follows the text, and all is decided.
    """
    start, end = candidate.span()
    if end == len(text):
        return Boundary.NONE if last else Boundary.UNDECIDED
    if start == end:  # Thai, Lao, Khmer and Burmese have a space where others have a comma or a full stop
        return Boundary.CLAUSE
    mark, following = text[start], text[end]
    if mark in _FULL_CLAUSE_MARKS or mark in "—–-":
        return Boundary.CLAUSE
    if mark in _CLAUSE_MARKS:
        return Boundary.CLAUSE if following.isspace() else Boundary.NONE
    if any(character in _FULL_TERMINATORS for character in candidate.group()):
        return _judge_full(text[sentence:end].lstrip(), following)
    if not following.isspace():
        return Boundary.SENTENCE if mark in "!?" and _CJK.match(following) else Boundary.NONE
    return _judge_spaced(text, sentence, end, language, last=last)


def _judge_full(before: str, following: str) -> Boundary:
    """A full stop that needs no space after it. A quote that is over goes on with who said it, a bracket does not."""
    if following.isalnum() and before[-1] not in _FULL_TERMINATORS + _TERMINATORS:
        return Boundary.SENTENCE if before[0] + before[-1] == "（）" else Boundary.NONE
    return Boundary.NONE if following.isdigit() and before[-1] in "．｡" else Boundary.SENTENCE


def _judge_spaced(text: str, sentence: int, end: int, language: str | None, *, last: bool) -> Boundary:
    """A full stop and white space: an end, an abbreviation or a number."""
    word = end
    while word < len(text) and text[word].isspace():
        word += 1
    if word - end > _LONGEST_GAP:
        return Boundary.SENTENCE
    for pattern in (_DASH, _OPENING):
        found = pattern.match(text, word)
        if found is None:
            continue
        word = found.end()
        if pattern is _DASH and text[word : word + 1].islower():
            return Boundary.NONE  # who said it
    if word == len(text):
        return Boundary.NONE if last else Boundary.UNDECIDED
    return _judge_words(text, sentence, end, word, language, last=last)


def _judge_words(text: str, sentence: int, end: int, word: int, language: str | None, *, last: bool) -> Boundary:
    """By what stands before an end, and by the next word, which begins at `word`."""
    before = text[sentence:end]
    if _is_no_end(before, language) or (text[word].isdigit() and _BEFORE_NUMBER.search(before)):
        return Boundary.NONE
    goes_on = text[word].islower()
    whole = before.lstrip()[0] == "(" and before[-1] == ")"
    if not goes_on and (before[-1] == "…" or whole or _DOMAIN.search(before)):
        return Boundary.SENTENCE
    languages = _languages(language, before)
    if end - sentence > _LONGEST_HEAD:
        space = text.find(" ", end - _LONGEST_HEAD, end)
        sentence = space + 1 if space >= 0 else end - _LONGEST_HEAD
    if sum(map(text[sentence:end].count, ".!?")) > _MOST_STOPS:
        return Boundary.NONE
    at, to = end - sentence, word - sentence
    # A capital letter behind a word that is no abbreviation is enough; all else is asked again with the whole word.
    if not before.rstrip(_CLOSERS + ".")[-1:].isdigit() and _cut(text[sentence : word + 1], at, to, languages):
        return Boundary.SENTENCE
    stop = _WORD_END.search(text, word, word + _LONGEST_WORD)
    if stop is None and len(text) < word + _LONGEST_WORD and not last:
        return Boundary.UNDECIDED
    window = text[sentence : stop.start() + 1 if stop is not None else word + _LONGEST_WORD]
    return Boundary.SENTENCE if _cut(window, at, to, languages) else Boundary.NONE


def _is_no_end(before: str, language: str | None) -> bool:
    """Whether no sentence ends like this: an initial, an abbreviation, a list's number, an ordinal, no word at all."""
    if not is_speakable(before) or _LIST_NUMBER.fullmatch(before):
        return True
    if language in _ORDINAL_LANGUAGES and _ORDINAL.search(before):
        return True
    return any(pattern.search(before) for pattern in (_INITIAL, _MORE_ABBREVIATIONS, _ABBREVIATIONS_BY_SCRIPT))


def _languages(language: str | None, before: str) -> tuple[str, ...]:
    """Whose rules count: the script's where no language was given or another script is meant by it.

    An end is one that all of them agree on.
    """
    by_script = _languages_of(before)
    if language is None or (by_script is not _LATIN and language in _WRITTEN_IN_LATIN):
        return by_script
    return (_KIN.get(language, language),)


def _languages_of(before: str) -> tuple[str, ...]:
    for character in reversed(before):
        if character.isalpha():
            code = ord(character)
            return next((languages for low, high, languages in _SCRIPTS if low <= code <= high), _LATIN)
    return _LATIN


def _cut(window: str, at: int, to: int, languages: tuple[str, ...]) -> bool:
    """Whether sentencex ends a sentence of `window` within [at, to] in each of the languages."""
    window = _ODD.sub(" ", window)
    for language in languages:
        if not any(at <= end <= to for end in accumulate(map(len, _segments(language, window)))):
            return False
    return True


def _segments(language: str, window: str) -> list[str]:
    try:
        return sentencex.segment(language, window)  # type: ignore[no-any-return]
    except BaseException as panic:  # a panic of Rust is no Exception, and would end more than this response
        if type(panic).__name__ != "PanicException":
            raise
        return [window]


def count_words(text: str) -> float:
    """Say how many words of English take about as long to say; scripts that don't space words go by characters."""
    words = sum(weight * len(script.findall(text)) for script, weight in _CHARACTERS)
    return words or sum(map(is_speakable, text.split()))


def is_speakable(text: str) -> bool:
    """Say whether there is a letter or a digit in `text`."""
    return any(map(str.isalnum, text))
