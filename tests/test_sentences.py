"""Chunks for a voice: what is cut where, when it goes, and what it stands for."""

import json
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.pacing import Pacing, Supply
from llm_service.sentences import Chunk, Chunker
from tests.test_speakable import BITS

ONE_BY_ONE = Pacing(joined=0)
SENTENCES = Pacing(joined=0, first_words=1000, first_longest=300)
# Each line is a response as a list of what its chunks stand for; a file is named for its language.
CORPUS = {
    file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for file in sorted((Path(__file__).parent / "data" / "sentences").glob("*.jsonl"))
}
LANGUAGES = {name: {"markdown": "en", "mixed": None}.get(name, name) for name in CORPUS if name != "clauses"}
PLENTY, LITTLE, NEARLY_NONE = Supply(9.0), Supply(2.0), Supply(0.1)
WORDS = st.sampled_from(
    ["Hello ", "the cat ", "Dr. ", "3.5 ", "sat. ", "Then ", "why? ", "no, ", "; ", "…", "好的，", "你好。", "ไป มา "]
)


def chunks_of(
    text: str, cuts: tuple[int, ...] = (), ahead: Supply | None = None, pacing: Pacing | None = None
) -> list[Chunk]:
    chunker = Chunker(pacing=pacing)
    out: list[Chunk] = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        out += chunker.feed(text[start:end], ahead)
    return out + chunker.finish()


def cut(text: str, language: str | None, pacing: Pacing = SENTENCES) -> list[str]:
    chunker = Chunker(language=language, pacing=pacing)
    chunks = [chunk for character in text for chunk in chunker.feed(character)] + chunker.finish()
    return [text[chunk.start : chunk.end] for chunk in chunks]


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


@pytest.mark.parametrize(("name", "language"), LANGUAGES.items())
def test_sentences(name: str, language: str | None) -> None:
    """Abbreviations, numbers, addresses, ellipses, quotes, lists, marks: sentences end where they do."""
    wrong = [(spans, found) for spans in CORPUS[name] if spans != (found := cut("".join(spans), language))]
    assert [] == wrong


def test_the_corpus_is_large() -> None:
    """It speaks fifteen languages, and some at once."""
    assert 400 < sum(map(len, CORPUS.values()))
    assert {
        "en",
        "de",
        "fr",
        "es",
        "it",
        "pt",
        "nl",
        "ru",
        "zh",
        "ja",
        "ko",
        "th",
        "hi",
        "ar",
        "da",
        "mixed",
    } < CORPUS.keys()


# Not German: that a number is an ordinal can't be told without the language.
@pytest.mark.parametrize("name", ["en", "fr", "es", "it", "pt", "nl", "da", "ru", "ar", "hi", "zh", "ja", "ko"])
def test_without_a_language(name: str) -> None:
    """Nothing is cut that the language itself would not cut."""
    for spans in CORPUS[name]:
        found = cut("".join(spans), None)
        assert set(accumulate(map(len, found))) <= set(accumulate(map(len, spans))), found


def test_clauses() -> None:
    """The first chunk ends with the first clause of a few words, or the first sentence."""
    wrong = [(spans, found) for spans in CORPUS["clauses"] if spans != (found := cut("".join(spans), None, ONE_BY_ONE))]
    assert [] == wrong


def test_the_first_clause_goes_at_once() -> None:
    """The first chunk ends at the first clause of a few words; the rest goes by sentence."""
    chunker = Chunker()
    assert [] == chunker.feed("Sure, I can help with that,")
    assert ["Sure, I can help with that,"] == texts(chunker.feed(" of course"))
    assert [] == chunker.feed(", and gladly.")
    assert ["of course, and gladly."] == texts(chunker.feed(" W"))
    assert ["What is it?"] == texts([*chunker.feed("hat is it?"), *chunker.finish()])


def test_a_short_first_sentence_goes_alone() -> None:
    """A sentence needs no number of words."""
    assert ["Sure!", "I can do that."] == texts(chunks_of("Sure! I can do that."))


def test_the_first_chunk_does_not_wait_for_ever() -> None:
    """A beginning without a clause is cut between words."""
    text = "a bee sees " * 12
    assert [text[:21]] == texts(Chunker(pacing=Pacing(first_longest=22)).feed(text))
    assert [text[:21]] == texts(Chunker(pacing=Pacing(first_longest=22)).feed(text + ", yes. No."))[:1]


def test_with_much_audio_ahead_sentences_are_joined() -> None:
    """They wait until a chunk is full or audio runs low."""
    chunker = Chunker(pacing=Pacing(joined=40))
    assert ["One is here."] == texts(chunker.feed("One is here. Two is", PLENTY))
    assert [] == chunker.feed(" there. Three is", PLENTY)
    assert [] == chunker.due(PLENTY)
    assert ["Two is there."] == texts(chunker.due(LITTLE))
    assert [] == chunker.feed(" nowhere. Four is", PLENTY)
    assert ["Three is nowhere. Four is somewhere."] == texts(chunker.feed(" somewhere. Five is everywhere.", PLENTY))
    assert ["Five is everywhere."] == texts(chunker.finish())


def test_before_silence_a_clause_will_do() -> None:
    """When audio is about to end, a long enough clause goes before its sentence is over."""
    chunker = Chunker()
    assert ["Hello."] == texts(chunker.feed("Hello. When all the lights went out, she", LITTLE))
    assert [] == chunker.due(LITTLE)
    assert ["When all the lights went out,"] == texts(chunker.due(NEARLY_NONE))
    assert ["she lit a candle."] == texts([*chunker.feed(" lit a candle."), *chunker.finish()])


def test_a_clause_goes_with_the_sentence_before_it_if_that_is_too_short() -> None:
    """What goes in one step counts as ahead at once: a word is not enough, a sentence is."""
    rest = "When all the lights went out, she"
    assert ["Hi.", "When all the lights went out,"] == texts(Chunker().feed(f"Hi. {rest}", Supply(0.0)))
    assert ["Hi there, you."] == texts(Chunker().feed(f"Hi there, you. {rest}", Supply(0.0)))


def test_the_first_thing_said_goes_at_once_whatever_came_before() -> None:
    """Marks alone, too many to go with what follows, are a chunk without a text, and not the beginning."""
    chunker, marks = Chunker(), "... " * 10
    assert ["", "Hello."] == texts(chunker.feed(f"{marks}\n\nHello. Then", PLENTY))
    assert [] == chunker.feed(" it waits. And", PLENTY)


def test_an_address_counts_once_all_of_it_was_said() -> None:
    """Cut within what stands for it, the first part of that stands for nothing."""
    text = "https://" + "a" * 10 + ".example.com/path"
    chunks = chunks_of(text, pacing=Pacing(longest=12, joined=0))
    assert [("aaaaaaaaaa.e", 0, 0), ("xample.com", 0, len(text))] == [
        (each.text, each.start, each.end) for each in chunks
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b, " + "c" * 9 + " d", ["a b,", "c" * 9 + " d"]),
        ("aaaa bbbb cccc dddd", ["aaaa bbbb", "cccc dddd"]),
        ("a" * 25, ["a" * 12, "a" * 12, "a"]),
        ("e\u0301" * 10, ["e\u0301" * 6, "e\u0301" * 4]),
        ("e" + "\u0301" * 20, ["e" + "\u0301" * 11, ""]),
        ("ae\u0301" * 5, ["ae\u0301" * 4, "ae\u0301"]),
        (". " * 10, [""] * 2),
    ],
)
def test_a_sentence_without_an_end_is_cut(text: str, expected: list[str]) -> None:
    """At a clause, else between words, else between characters."""
    chunks = chunks_of(text, pacing=Pacing(first_words=9, longest=12, joined=0))
    assert expected == texts(chunks)


def test_what_is_unspoken_goes_with_what_is_said() -> None:
    """It lies in a chunk's span; at the end of a response in a chunk without a text."""
    text = "**See:**\n```\ncode\n```\n😀 **Done.**\n\n[^1]: note"
    assert [("See:", "**See:**\n"), ("Done.", "```\ncode\n```\n😀 **Done.**\n\n"), ("", "[^1]: note")] == [
        (chunk.text, text[chunk.start : chunk.end]) for chunk in chunks_of(text, pacing=ONE_BY_ONE)
    ]
    assert [("", 0, 3)] == [(chunk.text, chunk.start, chunk.end) for chunk in chunks_of("😀 😀")]
    assert [] == chunks_of("")


def test_what_was_heard_is_led_back() -> None:
    """Characters said are characters of the response; what was replaced counts when all of it was said."""
    text = "Hi. **See** https://www.a.org/x now."
    chunk = chunks_of(text)[1]
    assert "See a.org now." == chunk.text
    heard = [text[chunk.start : chunk.response_chars(n)] for n in (-1, 0, 1, 3, 4, 5, 8, 9, 10, 14, 99)]
    url = " **See** https://www.a.org/x"
    assert [
        "",
        "",
        " **S",
        " **See",
        " **See** ",
        " **See** ",
        " **See** ",
        url,
        url + " ",
        *[url + " now."] * 2,
    ] == heard


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_deltas_and_pace_do_not_matter(data: st.DataObject) -> None:
    """However text comes and however much audio is ahead: the cuts are those of the slowest pace, or fewer.

    The chunks are the response, without a gap; what is heard never goes back; none is too long.
    """
    text = "".join(data.draw(st.lists(BITS | WORDS, max_size=40)))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6))))
    ahead = data.draw(st.sampled_from([None, LITTLE, PLENTY]))
    longest = data.draw(st.sampled_from([20, 300]))
    finest = chunks_of(text, tuple(range(1, len(text))), None, Pacing(longest=longest, joined=0))
    chunks = chunks_of(text, cuts, ahead, Pacing(longest=longest, joined=longest))
    assert {chunk.end for chunk in chunks} <= {chunk.end for chunk in finest}
    assert list(range(len(chunks))) == [chunk.id for chunk in chunks]
    assert [0, *(chunk.end for chunk in chunks)] == [*(chunk.start for chunk in chunks), len(text)]
    for chunk in chunks:
        heard = [chunk.response_chars(n) for n in range(len(chunk.text) + 1)]
        assert all(before <= after for before, after in pairwise(heard))
        assert not chunk.text or (chunk.start, chunk.end) == (heard[0], heard[-1])
        assert longest >= len(chunk.text)


@pytest.mark.parametrize(
    "bit",
    [
        "a",
        "a, ",
        "a, b. ",
        "(",
        "-",
        " ",
        "- ",
        "*",
        "[",
        "](",
        "`",
        "<",
        "&",
        "|",
        "\n",
        "\n- ",
        "```",
        "。",
        ".",
        ". ",
        "http://",
        "😀",
        '"',
    ],
)
def test_hostile_text_is_bounded(bit: str) -> None:
    """Whatever is repeated without end, what is held back stays small, and all comes out."""
    chunker, ends = Chunker(), [0]
    for _ in range(2):
        ends += [chunk.end for chunk in chunker.feed(bit * (2000 // len(bit)), PLENTY)]
        assert 3000 > len(chunker._text) + len(chunker._speakable._held)
        assert 200 > len(chunker._clauses) + len(chunker._ends)
    ends += [chunk.end for chunk in chunker.finish()]
    assert 2000 // len(bit) * len(bit) * 2 == ends[-1]
