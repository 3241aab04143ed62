"""Which answers were heard, by the acks of a client: one place in all of them."""

from hypothesis import given
from hypothesis import strategies as st

from llm_service.generation import SamplingParams
from llm_service.heard import MOST, Heard
from llm_service.response import Response, SpokenChunk
from llm_service.sentences import Chunk
from llm_service.session_config import SessionConfig
from llm_service.session_defaults import SessionDefaults

CHOICES = SessionDefaults(
    provider="scripted",
    model="small",
    models=frozenset({"small"}),
    sampling=SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=100),
    context_window=400,
    system_prompt="",
    max_history_messages=50,
    max_queued_messages=2,
).choices(SessionConfig())

# Each chunk by the marks around what is said of it: `**word** ` is heard as `word`.
SPOKEN = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=3), min_size=1)


def an_answer(number: int, *chunks: tuple[int, int], first: int = 1) -> Response:
    """Return an answer that was cut into these chunks: (marks on either side, characters that are heard)."""
    answer = Response(number, CHOICES, f"m-{number}", 0.0)
    start = 0
    for id_, (marks, said) in enumerate(chunks, start=first):
        length = said + 2 * marks
        pieces = ((0, marks), (said, said), (0, marks))
        answer.chunks[id_] = SpokenChunk(Chunk(id_, "x" * said, start, start + length, pieces=pieces), 0)
        answer.pieces.append("x" * length)
        start += length
    return answer


def ends(heard: Heard) -> list[tuple[int, int]]:
    return [(answer.number, end) for answer, end in heard.ends()]


def test_nobody_told() -> None:
    """Without an ack nothing is known to be heard or not, and no answer has an end."""
    heard = Heard()
    heard.begin(an_answer(1, (0, 5)), behind=False)
    assert [] == ends(heard)


def test_what_lies_behind_the_place_was_not_heard() -> None:
    """An ack within one answer says that nothing of those behind it was."""
    heard = Heard()
    heard.begin(an_answer(1, (2, 5), (0, 4)), behind=True)
    heard.begin(an_answer(2, (0, 6), first=3), behind=True)
    assert heard.take(1, 3)
    assert [(1, 5), (2, 0)] == ends(heard)
    assert heard.take(2, 4)
    assert [(1, 13), (2, 6)] == ends(heard), "it was heard to its end, and of the next nobody told"


def test_what_lies_before_the_place_was_heard() -> None:
    """An ack of an answer is one of all before it, which are over: later acks of them count no more."""
    heard = Heard()
    heard.begin(an_answer(1, (0, 5)), behind=True)
    heard.begin(an_answer(2, (0, 6), first=2), behind=True)
    assert heard.take(2, 3)
    assert not heard.take(1, 2)
    assert [(2, 3)] == ends(heard)


def test_a_later_ack_tells_more() -> None:
    """Behind the stop an ack may still move the place, into another answer as well."""
    heard = Heard()
    heard.begin(an_answer(1, (0, 5)), behind=True)
    heard.begin(an_answer(2, (0, 6), first=2), behind=True)
    heard.take(1, 2)
    heard.stopped = True
    assert [(1, 2), (2, 0)] == ends(heard)
    assert heard.take(2, 1)
    assert [(1, 5), (2, 1)] == ends(heard)
    assert heard.take(1, 4)
    assert [(1, 4), (2, 0)] == ends(heard)


def test_the_next_answer_silences_those_before_it() -> None:
    """Unless it is to be heard behind them, and they were not stopped."""
    for stopped, behind in ((False, False), (True, True)):
        heard = Heard()
        heard.begin(an_answer(1, (0, 5)), behind=behind)
        heard.take(1, 2)
        heard.stopped = stopped
        heard.begin(an_answer(2, (0, 6), first=2), behind=behind)
        assert not heard.stopped
        assert not heard.take(1, 3)
        assert [] == ends(heard)


def test_an_answer_that_is_undone_was_never_heard() -> None:
    """A turn that failed leaves the place where it was, or nowhere."""
    heard = Heard()
    heard.begin(an_answer(1, (0, 5)), behind=True)
    heard.take(1, 2)
    failed = an_answer(2, (0, 6), first=2)
    heard.begin(failed, behind=True)
    heard.undo(failed)
    assert [(1, 2)] == ends(heard)
    heard.begin(failed, behind=True)
    heard.take(2, 3)
    heard.undo(failed)
    assert [] == ends(heard)
    assert heard.newest is None


def test_it_is_bounded() -> None:
    """A client that never says what it heard does not fill the memory."""
    heard = Heard()
    for number in range(1, 100):
        heard.begin(an_answer(number, (0, 5), first=number), behind=True)
        if number == 1:
            heard.take(1, 2)
    assert MOST == len(heard._answers)
    assert [] == ends(heard), "the place is forgotten with its answer"


@given(SPOKEN, st.data())
def test_the_ends_are_one_place(spoken: list[list[tuple[int, int]]], data: st.DataObject) -> None:
    """Whatever was acked last: the ends, one behind the other, are a beginning of all that was said, up to there."""
    heard, answers, first = Heard(), list[Response](), 1
    for number, chunks in enumerate(spoken, start=1):
        answers.append(an_answer(number, *chunks, first=first))
        first += len(chunks)
        heard.begin(answers[-1], behind=True)
    answers = answers[-MOST:]
    heard.stopped = True
    chunk = data.draw(st.sampled_from([id_ for answer in answers for id_ in answer.chunks]))
    chars = data.draw(st.integers(0, 8))
    assert heard.take(chunk, chars)

    found = ends(heard)
    assert [answer.number for answer in answers] == [number for number, _ in found]
    place = next(index for index, answer in enumerate(answers) if chunk in answer.chunks)
    spans = answers[place].chunks[chunk]
    within = found[place][1]
    assert spans.start <= within <= spans.end
    assert [answer.chars for answer in answers[:place]] == [end for _, end in found[:place]]
    whole = within == answers[place].chars
    assert all(
        end == answer.chars * whole for answer, (_, end) in zip(answers[place + 1 :], found[place + 1 :], strict=True)
    )
