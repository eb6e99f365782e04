"""An HTTP proxy in front of the S3 server that spoils answers by a seeded plan."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("unavailable", "stalled", "reset", "cut short", "slow", "lost answer", "too many")


class FaultyProxy:
    """Passes requests on to `endpoint`; a share of them goes wrong, each in one of `FAULTS`.

    A burst spoils several requests in a row. `unavailable` and `too many` refuse before anything is done; `lost answer`
    resets the connection after the server has done what it was asked; `stalled` answers after the client's patience.
    """

    def __init__(self, endpoint: str, share: float = 0.08, seed: int = 0, stall: float = 4.0) -> None:
        self.target = urlsplit(endpoint)
        self.share, self.stall = share, stall
        self.counts: Counter[str] = Counter()
        self.always: str | None = None
        """A fault that every request meets from now on."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._burst: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> str | None:
        """What goes wrong with the next request."""
        with self._lock:
            self.counts["requests"] += 1
            chosen = self.always
            if chosen is None and self._burst:
                chosen = self._burst.pop()
            elif chosen is None and self._random.random() < self.share:
                chosen = self._random.choice(FAULTS)
                if chosen == "unavailable":
                    self._burst = ["unavailable"] * 3
            if chosen:
                self.counts[chosen] += 1
            return chosen


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.fault()
            if fault in ("unavailable", "too many"):
                return self._answer(
                    503 if fault == "unavailable" else 429, {}, b"<Error><Code>SlowDown</Code></Error>"
                )
            if fault == "reset":
                return self._reset()
            if fault == "stalled":
                time.sleep(proxy.stall)
                return self._reset()
            connection = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if fault == "lost answer":
                return self._reset()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")}  # fmt: skip
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            return self._answer(answer.status, kept, data, fault, length)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def _answer(
            self,
            status: int,
            headers: dict[str, str],
            data: bytes,
            fault: str | None = None,
            length: str | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command == "HEAD" or status in (204, 304):
                return
            if fault == "cut short":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self._reset()
            elif fault == "slow":
                for start in range(0, len(data), max(1, len(data) // 5)):
                    self.wfile.write(data[start : start + max(1, len(data) // 5)])
                    self.wfile.flush()
                    time.sleep(0.05)
            else:
                self.wfile.write(data)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
