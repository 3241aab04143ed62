"""The API keys of a file that may change while the service runs: one key a line, `#` before comments."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from llm_service.config import is_key
from llm_service.errors import ConfigurationError

# Seconds between two looks. The whole file is read each time: two versions may have the same size and time.
EVERY = 0.4
MAX_BYTES = 1_048_576
MAX_KEYS = 10_000

_log = structlog.get_logger(__name__)


class KeyFile:
    """The file that API_KEYS_FILE names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self._last_look: bytes | None = None
        self._problem = ""

    def __repr__(self) -> str:
        return f"<KeyFile: {self._path}>"

    def load(self) -> tuple[str, ...]:
        """Return the keys.

        A file without a line is no file of keys: one that is being written looks like that. One of comments alone is:
        it lets nobody in.

        Raises:
            ConfigurationError: it cannot be read, or a line of it is no key; names the line and never what is in it.
        """
        content = self._read()
        keys = self._keys(content)
        self._content = content
        return keys

    async def watch(self, changed: Callable[[tuple[str, ...]], None]) -> None:
        """Call `changed` with the keys each time that they are others, for ever.

        While the file cannot be read, or is no file of keys, what was read last counts; the log says so once.
        A file whose last line has no end may be one that is being written: it counts when the next look finds the same.
        """
        while True:
            await asyncio.sleep(EVERY)
            try:
                content = await asyncio.to_thread(self._read)
                seen, self._last_look = self._last_look, content
                whole = content.endswith((b"\n", b"\r")) or content == seen
                if whole and content != self._content:
                    keys = self._keys(content)
                    self._content = content
                    _log.info("api_keys_changed", keys=len(keys))
                    changed(keys)
            except ConfigurationError as error:
                if self._problem != error.message:
                    _log.error("api_keys_file_broken", reason=error.message, kept="the keys that were read last")
                self._problem = error.message
            else:
                self._problem = ""

    def _read(self) -> bytes:
        try:
            # Others, such as pipes, may never end.
            if self._path.exists() and not self._path.is_file():
                raise self._broken("is no file")
            with self._path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a path"
            raise self._broken(f"cannot be read ({reason})") from None
        if len(content) > MAX_BYTES:
            raise self._broken(f"has more than {MAX_BYTES} bytes")
        return content

    def _keys(self, content: bytes) -> tuple[str, ...]:
        try:
            lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise self._broken("is no text in UTF-8") from None
        if not any(lines):
            raise self._broken("is empty")
        keys = []
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                if not is_key(line):
                    raise self._broken(f"line {number} is no key: printable ASCII without spaces")
                keys.append(line)
        if len(keys) > MAX_KEYS:
            raise self._broken(f"has more than {MAX_KEYS} keys")
        return tuple(keys)

    def _broken(self, problem: str) -> ConfigurationError:
        return ConfigurationError(f"API_KEYS_FILE={self._path}: {problem}; write one key a line, comments behind #")
