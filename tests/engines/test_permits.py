"""Permits and the line for them: never above a limit, never free while somebody waits, fair, and nothing is lost."""

from typing import get_args

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_service.engines.permits import Line, Permits, Rank, Waiter
from llm_service.errors import Overloaded

RANKS: tuple[Rank, ...] = get_args(Rank)


class Client:
    """One who waits, and what it hears."""

    def __init__(self, session: str, *engines: Permits, rank: Rank = "turn") -> None:
        self.got: list[Permits] = []
        self.heard: list[int] = []
        self.engines = engines
        self.waiter = Waiter(
            session,
            wants=engines.__contains__,
            granted=self.got.append,
            moved=self.heard.append,
            rank=rank,
        )


def busy(limit: int = 1) -> Permits:
    """Return permits that are all taken."""
    permits = Permits(limit)
    permits.taken = limit
    return permits


def waiting(line: Line, *clients: Client) -> None:
    """Let them join in this order."""
    for client in clients:
        line.join(client.waiter, client.engines)


def test_sessions_come_by_turns() -> None:
    """One that asks for much gets one answer, then every other session gets one, then it gets the next."""
    line, engine = Line(10), busy()
    greedy = [Client("greedy", engine) for _ in range(3)]
    others = [Client("a", engine), Client("b", engine)]
    waiting(line, *greedy, *others)
    order = []
    for _ in range(5):
        line.give_back(engine)
        order += [client for client in (*greedy, *others) if client.got and client not in order]
    assert [greedy[0], *others, greedy[1], greedy[2]] == order
    assert (0, 1) == (line.waiting, engine.taken)
    line.give_back(engine)
    assert 0 == engine.taken


def test_what_is_lost_to_prompts_that_nobody_wants() -> None:
    """The seconds of each permit that is kept for one, while it is."""
    permits = Permits(4)
    assert 0.0 == permits.lost(100.0)
    permits.keep(1, 100.0)
    permits.keep(1, 110.0)
    assert (2, 10.0, 16.0) == (permits.unwanted, permits.lost(110.0), permits.lost(113.0))
    permits.keep(-1, 120.0)
    permits.keep(-1, 125.0)
    assert (0, 35.0, 35.0) == (permits.unwanted, permits.lost(125.0), permits.lost(1000.0))


def test_positions_are_told_when_they_change() -> None:
    """Each hears where it is, and again only when that is another place: also when one before it leaves."""
    line, engine = Line(10), busy()
    clients = [Client(name, engine) for name in "abc"]
    waiting(line, *clients)
    assert [[1], [2], [3]] == [client.heard for client in clients]
    line.leave(clients[1].waiter)
    assert [[1], [2], [3, 2]] == [client.heard for client in clients]
    line.give_back(engine)
    assert [[1], [2], [3, 2, 1]] == [client.heard for client in clients]
    line.leave(clients[1].waiter)  # it has left already
    assert 1 == line.waiting


def test_what_nobody_waits_for_comes_last() -> None:
    """A turn that comes later passes a summary that waits."""
    line, engine = Line(10), busy()
    aside, turn = Client("", engine, rank="background"), Client("a", engine)
    waiting(line, aside, turn)
    assert ([1, 2], [1]) == (aside.heard, turn.heard)
    line.give_back(engine)
    assert ([], [engine]) == (aside.got, turn.got)
    line.give_back(engine)
    assert [engine] == aside.got


def test_who_had_a_permit_comes_first() -> None:
    """One whose engine failed was let in before all who wait; a full line does not refuse it."""
    line, engine = Line(1), busy()
    waiting_one, again = Client("a", engine), Client("b", engine, rank="again")
    waiting(line, waiting_one, again)
    assert ([1, 2], [1]) == (waiting_one.heard, again.heard)
    line.give_back(engine)
    assert ([], [engine]) == (waiting_one.got, again.got)


def test_a_full_line_refuses_at_once() -> None:
    """The error says when to come back: after those who wait have been answered, as far as is known."""
    line, engine = Line(1), busy(2)
    engine.held(8.0)
    waiting(line, Client("a", engine))
    with pytest.raises(Overloaded) as caught:
        waiting(line, Client("b", engine))
    assert 8.0 == caught.value.retry_after
    assert "MAX_WAITING" in caught.value.message
    assert 1 == line.waiting


@pytest.mark.parametrize(("held", "told"), [(None, 1.0), (0.01, 1.0), (10_000.0, 60.0)])
def test_what_a_client_is_told_to_wait(held: float | None, told: float) -> None:
    """At least a second, at most a minute."""
    engine = busy()
    if held is not None:
        engine.held(held)
    assert told == Line(0).retry_after([engine])


def test_a_typical_answer_follows_the_newest() -> None:
    """One long answer among many short ones changes little, many change much."""
    engine = Permits(1)
    engine.held(1.0)
    engine.held(11.0)
    assert 2.0 == pytest.approx(engine.typical_seconds)
    for _ in range(100):
        engine.held(11.0)
    assert 11.0 == pytest.approx(engine.typical_seconds, rel=0.01)


def test_one_of_several_engines_is_enough() -> None:
    """Who may have any of two engines gets the one that is free first; who needs the other waits on."""
    line, one, other = Line(10), busy(), busy()
    needs_other, takes_any = Client("a", other), Client("b", one, other)
    waiting(line, needs_other, takes_any)
    line.give_back(one)
    assert ([], [one]) == (needs_other.got, takes_any.got)
    line.give_back(other)
    assert [other] == needs_other.got


def test_reprs() -> None:
    """They show what stands."""
    assert ("<Permits: 2 of 2 taken>", "<Line: 0 of 3>") == (repr(busy(2)), repr(Line(3)))


class LineMachine(RuleBasedStateMachine):
    """Any order of asking, leaving and giving back, for two engines."""

    def __init__(self) -> None:
        super().__init__()
        self.engines = [Permits(1), Permits(2)]
        self.line = Line(4)
        self.waiting: list[Client] = []
        self.holding: list[Permits] = []
        # Whose sessions were served while each client waited, with what it could have had.
        self.served: dict[Client, list[str]] = {}

    def settle(self) -> None:
        """Sort those who were handed a permit out of those who wait."""
        got = [client for client in self.waiting if client.got]
        self.waiting = [client for client in self.waiting if not client.got]
        for client in got:
            (permits,) = client.got
            assert permits in client.engines
            self.holding.append(permits)
            for other in self.waiting:
                if permits in other.engines:
                    # Nobody is passed by one of a lower rank.
                    assert RANKS.index(client.waiter.rank) <= RANKS.index(other.waiter.rank)
                    if other.waiter.rank == client.waiter.rank:
                        self.served[other].append(client.waiter.session)
            ours = self.served.pop(client)
            turns = 1 + ours.count(client.waiter.session)  # its session's own, this one included
            assert all(ours.count(session) <= turns for session in ours)

    @rule(session=st.sampled_from("abc"), which=st.sampled_from([(0,), (1,), (0, 1)]), rank=st.sampled_from(RANKS))
    def ask(self, session: str, which: tuple[int, ...], rank: Rank) -> None:
        """A free permit is taken at once; else one waits, or is refused by a full line."""
        engines = [self.engines[index] for index in which]
        for permits in engines:
            if permits.taken < permits.limit:
                permits.taken += 1
                self.holding.append(permits)
                return
        client = Client(session, *engines, rank=rank)
        try:
            self.line.join(client.waiter, client.engines)
        except Overloaded:
            assert len(self.waiting) >= self.line.limit
            assert rank != "again"
            return
        assert len(self.waiting) < self.line.limit or rank == "again"
        self.waiting.append(client)
        self.served[client] = []

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """One waits no longer."""
        client = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        del self.served[client]
        self.line.leave(client.waiter)

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """One that was answered gives its permit back."""
        permits = self.holding.pop(data.draw(st.integers(0, len(self.holding) - 1)))
        self.line.give_back(permits)
        self.settle()

    @rule()
    def empty(self) -> None:
        """Never stuck: when all that runs ends, again and again, all who wait have been served."""
        while self.holding:
            self.line.give_back(self.holding.pop())
            self.settle()
        assert (0, [], 0, 0) == (self.line.waiting, self.waiting, *(permits.taken for permits in self.engines))

    @invariant()
    def permits_are_counted(self) -> None:
        """What is taken is what is held, and never more than there are."""
        for permits in self.engines:
            assert permits.taken == self.holding.count(permits) <= permits.limit
        assert len(self.waiting) == self.line.waiting

    @invariant()
    def none_is_free_while_somebody_wants_it(self) -> None:
        """Who waits, waits for engines that are busy."""
        for client in self.waiting:
            assert all(permits.taken == permits.limit for permits in client.engines)

    @invariant()
    def positions_are_a_line(self) -> None:
        """Everybody heard a place of its own, from 1 on without a gap."""
        heard = sorted(client.heard[-1] for client in self.waiting)
        assert list(range(1, len(self.waiting) + 1)) == heard


TestLineMachine = LineMachine.TestCase
