"""`python main.py bench`: what a running service does for several sessions at once, as a client sees it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from time import perf_counter

from rich.console import Console
from rich.text import Text

from llm_service.bench_figures import Answer, Failure, Load, Records, figures, show
from llm_service.chat_client import ChatClient, ChatError, Event

PROMPT = "Explain in several paragraphs how the water of a river comes from the sea and goes back to it."
# Longer than the service itself waits for an engine: it is to say what is wrong.
ANSWER_TIMEOUT = 900.0
# Opening is not what is measured, and a thousand handshakes at once are for nobody's good.
OPENING_AT_ONCE = 50

NewClient = Callable[[], ChatClient]
Say = Callable[[str], None]


def run(load: Load, new_client: NewClient, *, as_json: bool, console: Console, notes: Console) -> int:
    """Measure and print the figures; returns the exit status: 0 all completed, 1 not all, 130 stopped by Ctrl-C."""
    records = Records()

    def say(text: str) -> None:
        notes.print(Text(text, style="dim"), soft_wrap=True)

    try:
        asyncio.run(measure(load, new_client, records, say))
    except KeyboardInterrupt:
        records.interrupted = True
    found = figures(load, records)
    if as_json:
        # rich would wrap and colour it.
        print(json.dumps(asdict(found), indent=2), file=console.file)
    else:
        show(found, console)
    if found.interrupted:
        return 130
    return 0 if found.complete else 1


async def measure(load: Load, new_client: NewClient, records: Records, say: Say) -> None:
    """Put the load on the service; what is known so far is in `records`, also when this is cancelled."""
    clients = [new_client() for _ in range(load.sessions)]
    try:
        say("warming up: one answer that does not count")
        if not await _noted(_warm_up(clients[0], load, records), records):
            return
        say(f"measuring; sessions: {load.sessions}, questions in each: {load.turns}")
        room = asyncio.Semaphore(OPENING_AT_ONCE)
        opened = await asyncio.gather(*(_noted(_open(client, room), records) for client in clients))
        # All are open before the first asks, so that all ask at the same time.
        talks = [_talk(number, client, load, records) for number, client in enumerate(clients) if opened[number]]
        await asyncio.gather(*(_noted(talk, records) for talk in talks))
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))


async def _noted(work: Awaitable[None], records: Records) -> bool:
    """Do what may fail for one session and note it if it does; returns whether it went well."""
    try:
        await work
    except ChatError as error:
        records.failures.append(Failure(error.code, str(error)))
        return False
    return True


async def _warm_up(client: ChatClient, load: Load, records: Records) -> None:
    """Have the model loaded and the code warm; the session is then like the others, with nothing said in it."""
    await client.open()
    records.model = client.model
    await _ask(0, client, load.prompt)
    await client.reset()


async def _open(client: ChatClient, room: asyncio.Semaphore) -> None:
    async with room:
        await client.open()


async def _talk(number: int, client: ChatClient, load: Load, records: Records) -> None:
    """Ask one question after the other; an answer that failed is no reason not to ask the next."""
    for _ in range(load.turns):
        try:
            records.answers.append(await _ask(number, client, load.prompt))
        except AnswerFailed as error:
            records.failures.append(Failure(error.code, str(error)))


class AnswerFailed(ChatError):
    """An answer ended by an error, and the session goes on."""


async def _ask(session: int, client: ChatClient, prompt: str) -> Answer:
    """Ask once.

    Raises:
        AnswerFailed: the answer ended by an error.
        ChatError: the session cannot go on.
    """
    arrivals: list[float] = []
    pieces: list[str] = []

    def take(piece: str) -> None:
        arrivals.append(perf_counter())
        pieces.append(piece)

    asked = perf_counter()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            event = await client.stream(prompt, take)
    except TimeoutError:
        raise ChatError(f"an answer took longer than {ANSWER_TIMEOUT:g} seconds", code="no_answer") from None
    ended = perf_counter()
    try:
        tokens, estimated = _tokens(event)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ChatError("an answer did not end as this protocol has it", code="other_protocol") from None
    words = len("".join(pieces).split())
    return Answer(session, asked, tuple(arrivals), ended, words, tokens, estimated)


def _tokens(event: Event) -> tuple[int, bool]:
    """Return how many tokens an answer had, and whether that is an estimate; raises as `_ask` does for another end."""
    if event["type"] == "response_complete":
        return int(event["stats"]["tokens_generated"]), bool(event["stats"].get("estimated"))
    if event["type"] == "cancelled":
        raise AnswerFailed("the service broke an answer off", code="cancelled")
    error = event["error"]
    # After an error that is not recoverable the connection is closed: that is no second error.
    kind = AnswerFailed if error.get("recoverable", True) else ChatError
    raise kind(str(error["message"]), code=str(error["code"]))
