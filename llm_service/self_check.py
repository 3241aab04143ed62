"""`python main.py test`: is everything there that the service needs to answer?"""

import asyncio
import contextlib
from time import monotonic

from rich.console import Console

from llm_service.config import Settings
from llm_service.engines import OpenedEngine, open_engine
from llm_service.errors import FastTalkError
from llm_service.generation import Delta, Finish, GenerationRequest, Message, SamplingParams

QUESTION = "Say hello in one short sentence."
MAX_TOKENS = 24
# A large model may have to be read from a disk first.
TIMEOUT = 300.0


async def self_check(settings: Settings, console: Console) -> bool:
    """Open the engine, load the model and generate once, saying what works; returns whether all of it does."""
    console.print(f"[green]✓[/] configuration: provider {settings.llm_provider}, model {settings.llm_model}")
    try:
        opened = await open_engine(settings)
    except FastTalkError as error:
        console.print(f"[red]✗ engine: {error.message}[/]", highlight=False, soft_wrap=True)
        return False
    async with contextlib.aclosing(opened.engine):
        console.print(f"[green]✓[/] device: {opened.device}", highlight=False)
        console.print(f"[green]✓[/] engine: {opened.provider} ({opened.reason})", highlight=False)
        console.print(f"[green]✓[/] model: {opened.model}, window {opened.context_window} tokens", highlight=False)
        try:
            async with asyncio.timeout(TIMEOUT):
                await _generate(opened, console)
        except FastTalkError as error:
            console.print(f"[red]✗ generation: {error.message}[/]", highlight=False, soft_wrap=True)
            return False
        except TimeoutError:
            console.print(f"[red]✗ generation: no answer within {TIMEOUT:g} seconds; try a smaller model[/]")
            return False
    return True


async def _generate(opened: OpenedEngine, console: Console) -> None:
    request = GenerationRequest(
        model=opened.model,
        messages=(Message("user", QUESTION),),
        sampling=SamplingParams(temperature=0.0, top_p=1.0, top_k=1, max_tokens=MAX_TOKENS),
        context_window=opened.context_window,
    )
    started = monotonic()
    first: float | None = None
    text = ""
    tokens = 0
    async with contextlib.aclosing(opened.engine.generate(request)) as stream:
        async for item in stream:
            if isinstance(item, Delta):
                first = first or monotonic()
                text += item.text
            elif isinstance(item, Finish) and item.usage is not None:
                tokens = item.usage.completion_tokens
    waited = (first or monotonic()) - started
    console.print(
        f"[green]✓[/] generation: {text.strip()!r} ({tokens} tokens, the first after {waited:.2f} s)",
        highlight=False,
        soft_wrap=True,
    )
