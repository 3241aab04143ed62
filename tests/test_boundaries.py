"""Where sentences and clauses end."""

import pytest

from llm_service.boundaries import CANDIDATE, Boundary, count_words, judge

SENTENCE, CLAUSE, NONE, UNDECIDED = Boundary.SENTENCE, Boundary.CLAUSE, Boundary.NONE, Boundary.UNDECIDED


def judged(text: str, language: str | None = None, *, last: bool = False) -> list[Boundary]:
    return [judge(text, 0, found, language, last=last) for found in CANDIDATE.finditer(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", UNDECIDED),
        ("Yes. ", UNDECIDED),
        ("Yes. N", SENTENCE),
        ("Yes. n", UNDECIDED),
        ("Yes. no ", NONE),
        ("Dr. S", NONE),
        ("Acme Inc. S", UNDECIDED),
        ("Acme Inc. Sells ", NONE),
        ("Hm… O", SENTENCE),
        ("Hm… oh ", NONE),
        ("(Yes.) N", SENTENCE),
        ("„Ja.“ D", SENTENCE),
        ("Non. « ", UNDECIDED),
        ("Non. « O", SENTENCE),
        ("３．５", NONE),
        ("（好。）的", SENTENCE),
        ("3.1", NONE),
        ("Am 3. Okt", UNDECIDED),
        ("Am 3. Oktober ", NONE),
        ("Ja," + " ", CLAUSE),
        ("3,5", NONE),
        ("好。", UNDECIDED),
        ("好。的", SENTENCE),
        ("好，", UNDECIDED),
        ("好，的", CLAUSE),
        ("「行く。」と", NONE),
        ("「行く。」「", SENTENCE),
        ("ไป ", CLAUSE),
        ("Yes." + " " * 40, SENTENCE),
    ],
)
def test_what_is_certain_when(text: str, expected: Boundary) -> None:
    """An end is taken with the first letter that settles it, and never before."""
    assert [expected] == judged(text)


def test_a_domain_may_end_a_sentence() -> None:
    """It is no abbreviation, though it has dots within."""
    assert [NONE, NONE, SENTENCE] == judged("Go to a.example.com. I", "es")


def test_a_quote_goes_on_with_who_said_it() -> None:
    """A dash and a small letter behind it say so."""
    assert [UNDECIDED, CLAUSE] == judged("«Да?» — ")
    assert [NONE, CLAUSE] == judged("«Да?» — с")
    assert [SENTENCE, CLAUSE] == judged("«Да?» — Н")


def test_at_the_end_all_is_certain() -> None:
    """Where nothing follows there is nothing to wait for."""
    assert [NONE] == judged("Yes. ", last=True)
    assert [NONE] == judged("Dr. Smith", last=True)
    assert [SENTENCE, NONE] == judged("Yes. No.", last=True)


def test_the_language_decides() -> None:
    """The same marks end a sentence in one language and not in another; without a language all must agree."""
    text = "Am 3. Oktober "
    assert ([SENTENCE], [NONE], [NONE]) == (judged(text, "en"), judged(text, "de"), judged(text))
    text = "В 1990 г. в "
    assert [[NONE]] * 3 == [judged(text, language) for language in ("ru", "en", None)]
    text = "Im 19. Jahrhundert "
    assert ([SENTENCE], [NONE]) == (judged(text, "en"), judged(text, "de"))


@pytest.mark.parametrize("text", ["Plan B\u00a0. Then ", "Plan B\u3000. Then ", "Plan \ud800. Then "])
def test_odd_characters_are_as_good_as_others(text: str) -> None:
    """sentencex itself panics at a space that isn't ASCII behind a capital letter, and refuses a lone surrogate."""
    assert [SENTENCE] == judged(text, "en")


@pytest.mark.parametrize("language", ["it", "da", None])
def test_a_crowd_of_full_stops_is_not_looked_at(language: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sentencex is asked is short: some languages cost it a millisecond for each full stop."""
    asked: list[str] = []

    def segment(language: str, window: str) -> list[str]:
        asked.append(window)
        return [window]

    monkeypatch.setattr("sentencex.segment", segment)
    judged("Here and there. " * 20 + "a. " * 20, language)
    assert asked
    assert 100 > max(map(len, asked))
    assert 10 > max(window.count(".") for window in asked)


def test_a_panic_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If sentencex panics all the same, nothing is cut there, and nothing else is lost; other errors are not hidden."""

    class PanicException(BaseException):
        pass

    failure: type[BaseException] = PanicException

    def segment(language: str, window: str) -> list[str]:
        raise failure

    monkeypatch.setattr("sentencex.segment", segment)
    assert [NONE] == judged("Here it is. Then ", "en")
    failure = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        judged("Here it is. Then ", "en")


def test_words_are_counted_by_how_long_they_take() -> None:
    """Marks are no words; scripts without spaces count by characters."""
    assert [0, 2, 3, 2, 2.5] == [
        count_words(text) for text in ("- ,", "a - b,", "当然可以，", "はい、います", "สวัสดีครับ")
    ]
