"""A way to Redis on which bytes take their time, each connection's in their order."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable


class SlowProxy:
    """Passes on what Redis answers after up to `delay` seconds, by chance.

    After `hold`, what clients say on the connections there are is kept until `let_go`, even if they close them.
    """

    def __init__(self, target: int, *, delay: float, seed: int = 7) -> None:
        self._target = target
        self._delay = delay
        self._chance = random.Random(seed)
        self._free: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.passed_late = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """Yield its URL."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        """Keep what comes on today's connections."""
        for free in self._free.values():
            free.clear()

    def let_go(self) -> None:
        """Pass on what was kept."""
        for free in self._free.values():
            free.set()

    def _connected(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(from_client, to_client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1

    async def _connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self._target)
        free = self._free[to_redis] = asyncio.Event()
        free.set()
        answers = asyncio.create_task(self._pass(from_redis, to_client, self._late))
        try:
            await self._pass(from_client, to_redis, self._kept)
        finally:
            answers.cancel()
            del self._free[to_redis]
            to_redis.close()
            to_client.close()
            await asyncio.gather(answers, return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        before: Callable[[asyncio.StreamWriter], Awaitable[None]],
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                await before(writer)
                writer.write(data)
                await writer.drain()

    async def _late(self, _: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._chance.uniform(0, self._delay))

    async def _kept(self, to_redis: asyncio.StreamWriter) -> None:
        free = self._free[to_redis]
        if not free.is_set():
            await free.wait()
            self.passed_late += 1
