"""Server-sent events, as WHATWG's HTML standard defines them: bytes in, data payloads out."""

from llm_service.errors import GenerationFailed

MAX_EVENT_BYTES = 1_048_576

_BOM = b"\xef\xbb\xbf"


class SSEDecoder:
    """Cuts a stream of bytes into the data of its events, however the bytes are split.

    Lines end with LF, CR LF or CR; several `data` lines of one event are joined by LF. Comments and the
    fields event, id and retry are ignored: no engine says anything in them. An event that the stream's end
    cuts off is dropped, as the standard asks.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_first_line",
        "_limit",
        "_rest",
        "_size",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._first_line = True
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read and return the payloads of the events it completes, in order.

        Raises:
            GenerationFailed: a line or an event is longer than the bound.
        """
        if data.startswith(b"data: ") and data.endswith(b"\n\n") and not (self._rest or self._data):
            # Nearly every read is one event of one line, or a few of them, and this is on the way of every token.
            body = data[6:-2]
            if b"\r" not in body and len(data) <= self._limit:
                single = b"\n" not in body
                payloads = [body] if single else body.split(b"\n\ndata: ")
                if single or data.count(b"\n") == 2 * len(payloads):
                    self._first_line = self._after_cr = False
                    return payloads
        if self._after_cr and data:
            # A CR at the end of the last read has ended its line; the LF is the second half of that end.
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\n" not in data and b"\r" not in data:
            self._rest += data
            self._check(len(self._rest))
            return []
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
            self._rest.clear()
        self._after_cr = data.endswith(b"\r")
        payloads = []
        # For bytes, unlike str, splitlines knows LF, CR LF and CR and nothing else.
        for line in data.splitlines(keepends=True):
            if line[-1] not in b"\r\n":
                self._rest += line
                self._check(len(line))
            elif (payload := self._take(line.rstrip(b"\r\n"))) is not None:
                payloads.append(payload)
        return payloads

    def _take(self, line: bytes) -> bytes | None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._size += len(value) + 1
            self._check(self._size)
            self._data.append(value)
        return None

    def _dispatch(self) -> bytes | None:
        if not self._data:
            return None
        payload = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data = []
        self._size = 0
        return payload

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise GenerationFailed(f"The engine sent an event of more than {self._limit} bytes.")
