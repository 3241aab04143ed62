"""Newline-delimited JSON: bytes in, whole lines out."""

from llm_service.errors import GenerationFailed

MAX_LINE_BYTES = 1_048_576


class LineBuffer:
    """Holds back what is not yet a whole line of a stream of bytes, however the bytes are split.

    Lines come out with their line ends and undecoded: a character cut between two reads is whole again before
    anybody looks at it. `rest` is what is held back.
    """

    __slots__ = (
        "_limit",
        "rest",
    )

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit = max_line_bytes
        self.rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take what was read and return the lines it completes, one after the other; b"" when there is none.

        Raises:
            GenerationFailed: a line is longer than the bound.
        """
        end = data.rfind(b"\n") + 1
        # Appended in place, so that many small reads of one long line cost no more than the line.
        self.rest += data[:end]
        whole = bytes(self.rest) if end else b""
        if len(whole) > self._limit:
            self._check(max(map(len, whole.split(b"\n"))))
        if end:
            self.rest.clear()
        self.rest += data[end:]
        self._check(len(self.rest))
        return whole

    def flush(self) -> bytes:
        """Return what came after the last line end; call it when the stream has ended."""
        line = bytes(self.rest)
        self.rest.clear()
        return line

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise GenerationFailed(f"The engine sent a line of more than {self._limit} bytes.")
