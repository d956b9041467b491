"""Reads HTTP/1.1 answers from bytes, one after the other. It knows nothing of connections."""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserCallbackError, HttpParserError, HttpResponseParser

from weaverant.engines.http.client.body import Body, Garbled, body_of, read_headers
from weaverant.engines.http.client.transport import MOST_HEAD, Answer
from weaverant.engines.http.client.whole import read_whole


class Reader:
    """For each answer `begin`, feed it until it has `ended`, and `take` what came."""

    __slots__ = (
        *("_answer", "_body", "_head", "_headers", "_most", "_on_data", "_parser", "_quiet", "_status", "_whole"),
        *("begun", "ended", "error", "keep"),
    )

    def __init__(self) -> None:
        self._parser = _parser(self)
        self._head: list[bytes] = []  # names and values in turn
        self._headers: dict[str, str] = {}
        self._status = 0
        self._body: Body | None = None  # made when the head is complete
        self._whole = b""
        self._quiet = 0  # bytes since the last that were of the body
        self._answer: Answer | None = None
        self.error: BaseException | None = None
        """Why there is no answer: `Garbled`, or what `on_data` raised. None follows on the connection."""

    def begin(self, most: int, on_data: Callable[[bytes], None] | None) -> None:
        """The next answer is yet to come."""
        self._most = most
        self._on_data = on_data
        self.begun = False
        """Whether a byte has come."""
        self.ended = False
        self.keep = False
        """Whether the connection may carry another request."""

    def feed(self, data: memoryview) -> bool:
        """Take what came; returns `ended`."""
        if not self.begun:
            self.begun = True
            if self._on_data is None:
                self._answer = read_whole(data, self._most)
                if self._answer is not None:
                    self.ended = self.keep = True
                    return True
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
                self._whole = self._body.end()
                self.ended = True
            except Garbled as error:
                self._fail(error)

    def take(self) -> Answer:
        """The answer, of which nothing is kept here."""
        answer, self._answer = self._answer, None
        if answer is not None:
            return answer
        body, self._body = self._body, None
        whole, self._whole = self._whole, b""
        self._on_data, self._quiet = None, 0
        return Answer(self._status, self._headers, whole, body is not None and body.too_large)

    def close(self) -> None:
        """Let go of the parser, which refers to the reader: else both, and a body cut short, wait to be collected."""
        del self._parser

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.ended:
            raise Garbled("more came than it announced")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._body is None:  # what comes after a chunked body is not read
            self._head += (name, value)

    def on_headers_complete(self) -> None:
        head, self._head = self._head, []
        self._status = status = self._parser.get_status_code()
        if status < 200 and status != 101:  # 100 Continue, 103 Early Hints: the answer is yet to come
            return
        if self._quiet > MOST_HEAD and sum(map(len, head)) > MOST_HEAD:
            raise _long_head()
        self._headers = headers = read_headers(head)
        self._body = body_of(status, headers, self._most, self._on_data)

    def on_body(self, piece: bytes) -> None:
        self._quiet = 0
        body = self._body
        if body is not None and not self.ended:
            body.feed(piece)
            self.ended = body.too_large

    def on_message_complete(self) -> None:
        body = self._body
        if body is not None and not self.ended:
            self._whole = body.end()
            self.ended = True
            self.keep = self._parser.should_keep_alive()

    def _fail(self, error: BaseException) -> None:
        """What comes along with the end of an answer and is not of it spoils it, too: its length may be wrong."""
        self.keep = False
        self.ended = True
        if self._body is None or not self._body.too_large:
            self.error = self.error or error


def _parser(reader: Reader) -> HttpResponseParser:
    """As lenient as aiohttp is with what servers do send: odd bytes in the values of headers, lines that end with a
    bare LF, a space behind the size of a chunk."""
    parser = HttpResponseParser(reader)
    parser.set_dangerous_leniencies(
        lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
    )
    return parser


def _long_head() -> Garbled:
    return Garbled(f"its head is longer than the {MOST_HEAD} bytes we accept")
