"""Where sessions rest, and the one place that names the stores: `open_store`.

A store's module is imported when it is opened: the libraries of the others would only make the start slow.
"""

from llm_service.config import Settings
from llm_service.stores.base import Store


async def open_store(settings: Settings) -> Store:
    """Open the store that SESSION_STORE names.

    Raises:
        ConfigurationError: it cannot be had; the message says what to do.
    """
    largest, timeout = settings.max_record_bytes, settings.store_timeout
    match settings.session_store:
        case "sqlite":
            from llm_service.stores.sqlite import SQLiteStore

            return await SQLiteStore.open(settings.sqlite_path, timeout=timeout, max_record_bytes=largest)
        case "redis":
            from llm_service.stores.redis import RedisStore

            url, prefix = settings.redis_url.get_secret_value(), settings.redis_prefix
            return await RedisStore.open(url, prefix=prefix, timeout=timeout, max_record_bytes=largest)
        case "memory":
            from llm_service.stores.memory import MemoryStore

            return MemoryStore(max_bytes=settings.session_store_bytes, max_record_bytes=largest)
