"""An HTTP server on loopback that misbehaves on request."""

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Route:
    """The answers of the server to one path.

    Attributes:
        content: The whole file.
        cuts: Number of requests to break off after half of what they asked for.
        fail: HTTP statuses to answer with first, one a request.
        redirect: Path to send the client to.
        ranges: True if a Range is honoured.
        headers: Added to the answer.
        requests: The Range header of every request so far.
    """

    content: bytes = b""
    cuts: int = 0
    fail: list[int] = field(default_factory=list)
    redirect: str | None = None
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str | None] = field(default_factory=list)


class Server:
    """A server.

    Attributes:
        routes: The answers by path; any other path is 404.
        asked: Path and headers of every request so far.
    """

    def __init__(self):
        self.routes: dict[str, Route] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.answer(self)

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/{path}"

    def add(self, path: str, content: bytes = b"", **options) -> Route:
        self.routes[f"/{path}"] = Route(content, **options)
        return self.routes[f"/{path}"]

    def close(self):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler):
        self.asked.append((handler.path, dict(handler.headers)))
        route = self.routes.get(handler.path)
        if route is None:
            return self._empty(handler, 404)
        asked = handler.headers.get("Range")
        route.requests.append(asked)
        if route.redirect:
            return self._empty(handler, 302, {"Location": route.redirect})
        if route.fail:
            return self._empty(handler, route.fail.pop(0))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and route.ranges else 0
        size = len(route.content)
        if start and start >= size:
            return self._empty(handler, 416, {"Content-Range": f"bytes */{size}"})
        body = route.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, value in route.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if route.cuts:
            route.cuts -= 1
            body = body[: len(body) // 2]
            handler.close_connection = True
        handler.wfile.write(body)
        return None

    @staticmethod
    def _empty(handler, status, headers=None):
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
