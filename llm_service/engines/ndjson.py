"""Newline-delimited JSON: bytes in, complete lines out."""

from llm_service.errors import GenerationFailed

MAX_LINE_BYTES = 1_048_576


class NDJSONDecoder:
    """Cuts a stream of bytes into lines, however the bytes are split.

    Lines come out without their line end and undecoded: a character cut between two reads is whole again
    before anybody looks at it. Blank lines are left out.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit = max_line_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read and return the lines it completes, in order.

        Raises:
            GenerationFailed: a line is longer than the bound.
        """
        if b"\n" not in data:
            # Appended in place, so that many small reads of one long line cost no more than the line.
            self._rest += data
            self._check(len(self._rest))
            return []
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
        lines = data.split(b"\n")
        self._rest = bytearray(lines.pop())
        if len(data) > self._limit:
            self._check(max(len(self._rest), *map(len, lines)))
        return [line for line in lines if line and not line.isspace()]

    def flush(self) -> list[bytes]:
        """Return what came after the last line end, at most one line; call it when the stream has ended."""
        line, self._rest = bytes(self._rest), bytearray()
        return [line] if line and not line.isspace() else []

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise GenerationFailed(f"The engine sent a line of more than {self._limit} bytes.")
