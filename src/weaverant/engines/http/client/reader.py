"""Reads one HTTP/1.1 answer from bytes. It knows nothing of connections."""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserCallbackError, HttpParserError, HttpResponseParser

from weaverant.engines.http.client.body import Body, Garbled, body_of
from weaverant.engines.http.client.transport import MOST_HEAD, Answer


class Reader:
    """Feed it until it has `ended`; then `answer` gives the answer, or raises `Garbled`, or what `on_data` raised."""

    __slots__ = (
        *("_body", "_error", "_headers", "_most", "_on_data", "_parser", "_quiet", "_status", "_whole"),
        *("begun", "ended", "keep"),
    )

    def __init__(self, most: int, on_data: Callable[[bytes], None] | None) -> None:
        self._most = most
        self._on_data = on_data
        self._headers: dict[str, str] = {}
        self._status = 0
        self._body: Body | None = None  # made when the head is complete
        self._whole = b""
        self._error: BaseException | None = None
        self._quiet = 0  # bytes since the last that were of the body
        self.begun = False
        """Whether a byte has come."""
        self.ended = False
        self.keep = False
        """Whether the connection may carry another request."""
        self._parser = HttpResponseParser(self)
        # As lenient as aiohttp is with what servers do send: odd bytes in the values of headers, lines that end with
        # a bare LF, a space behind the size of a chunk.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def feed(self, data: bytes | memoryview) -> bool:
        """Take what came; returns `ended`."""
        self.begun = True
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError as error:
            self._fail(error.__context__ or error)
        except HttpParserError as error:
            self._fail(Garbled(f"it is no HTTP: {error}"))
        if self._quiet > MOST_HEAD and not self.ended:
            self._fail(_long_head())
        return self.ended

    def end(self) -> None:
        """The connection was closed in order, which is how some answers end."""
        if self._body is None:
            self._fail(Garbled("the connection was closed in the middle of its head"))
        elif "content-length" in self._headers or self._headers.get("transfer-encoding", "").lower() == "chunked":
            self._fail(Garbled("the connection was closed in the middle of its body"))
        else:
            try:
                self._complete(self._body)
            except Garbled as error:
                self._fail(error)

    def answer(self) -> Answer:
        if self._error is not None:
            raise self._error
        too_large = self._body is not None and self._body.too_large
        return Answer(self._status, self._headers, self._whole, too_large)

    def close(self) -> None:
        """Let go of the parser, which refers to the reader: else both, and a body cut short, wait to be collected."""
        del self._parser

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.ended:
            raise Garbled("more came than it announced")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._body is None:  # what comes after a chunked body is not read
            if b"\0" in value:
                raise Garbled("a header of it holds a null")
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._quiet > MOST_HEAD and sum(len(name) + len(self._headers[name]) for name in self._headers) > MOST_HEAD:
            raise _long_head()
        self._status = self._parser.get_status_code()
        if self._status < 200 and self._status != 101:  # 100 Continue, 103 Early Hints: the answer is yet to come
            self._headers.clear()
            return
        self._body = body_of(self._status, self._headers, self._most, self._on_data)

    def on_body(self, piece: bytes) -> None:
        self._quiet = 0
        body = self._body
        if body is not None and not self.ended:
            body.feed(piece)
            self.ended = body.too_large

    def on_message_complete(self) -> None:
        if self._body is not None and not self.ended:
            self._complete(self._body)
            self.keep = self._parser.should_keep_alive()

    def _complete(self, body: Body) -> None:
        self._whole = body.end()
        self.ended = True

    def _fail(self, error: BaseException) -> None:
        """What comes along with the end of an answer and is not of it spoils it, too: its length may be wrong."""
        self.keep = False
        self.ended = True
        if self._body is None or not self._body.too_large:
            self._error = self._error or error


def _long_head() -> Garbled:
    return Garbled(f"its head is longer than the {MOST_HEAD} bytes we accept")
