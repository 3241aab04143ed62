"""Sessions that rest in memory."""

from llm_service.stores.memory import MemoryStore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_record_is_there_for_its_time() -> None:
    """What was saved last is found until its time is over, or it is deleted; then there is nothing."""
    clock = Clock()
    store = MemoryStore(max_bytes=10_000, clock=clock)
    await store.save("a", b"1", ttl=10.0)
    await store.save("a", b"2", ttl=10.0)
    await store.save("b", b"3", ttl=5.0)
    assert (b"2", b"3", None) == (await store.load("a"), await store.load("b"), await store.load("c"))
    clock.now = 5.0
    assert (b"2", None) == (await store.load("a"), await store.load("b"))
    await store.delete("a")
    await store.delete("a")
    assert await store.load("a") is None
    assert "0 records, 0 bytes" in repr(store)


async def test_the_oldest_make_room() -> None:
    """Past the bound the records saved longest ago are gone, and no others; one too large leaves nothing."""
    store = MemoryStore(max_bytes=4 * 1256)
    for number in range(6):
        await store.save(str(number), bytes(1000), ttl=10.0)
    await store.save("2", b"", ttl=10.0)
    await store.save("6", bytes(1000), ttl=10.0)
    assert ["2", "4", "5", "6"] == [key for key in map(str, range(7)) if await store.load(key) is not None]
    await store.save("large", bytes(10_000), ttl=10.0)
    assert [None] * 8 == [await store.load(key) for key in (*map(str, range(7)), "large")]


async def test_nobody_else_claims() -> None:
    """A session in memory is always its process's own."""
    store = MemoryStore(max_bytes=1)
    assert await store.claim("a", "me", ttl=1.0) is None
    assert ([], []) == await store.renew(["a"], "me", ttl=1.0)
    await store.release("a", "me")
    await store.ask("me", "a")
    await store.ping()
    await store.writable()
    await store.aclose()
    assert not store.shared
