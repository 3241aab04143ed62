"""Where sessions rest, and the one place that names the stores: `open_store`."""

from llm_service.config import Settings
from llm_service.stores.base import Store
from llm_service.stores.memory import MemoryStore


async def open_store(settings: Settings) -> Store:
    """Open the store that the settings ask for."""
    return MemoryStore(max_bytes=settings.session_store_bytes)
