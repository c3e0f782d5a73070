"""A web server on this machine that does to a download what the internet does."""
import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faulty(BaseHTTPRequestHandler):
    """What a path does is in `server.faults[path]`: a function (handler, nth request to that path) -> None."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        asked = self.server.asked.setdefault(self.path, [])
        asked.append(self.headers.get("Range"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.server.faults.get(self.path, whole)(self, len(asked))

    def begin(self, code=200, length=None, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    @property
    def content(self) -> bytes:
        return self.server.content

    def start(self) -> int:
        """Where the client wants to continue."""
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0

    def log_message(self, *_):
        pass


def whole(handler, _nth):
    """A good server: ranges, validator, 416 beyond the end."""
    start, size = handler.start(), len(handler.content)
    fresh = handler.headers.get("If-Range") in (None, handler.server.etag)
    if start and fresh and start >= size:
        handler.begin(416, 0, Content_Range=f"bytes */{size}")
    elif start and fresh:
        handler.begin(206, size - start, Content_Range=f"bytes {start}-{size - 1}/{size}", ETag=handler.server.etag)
        handler.wfile.write(handler.content[start:])
    else:
        handler.begin(200, size, ETag=handler.server.etag)
        handler.wfile.write(handler.content)


def truncates(after, times=10**9):
    """Announces everything, hangs up after `after` bytes of each answer; good from request times + 1 on."""
    def behave(handler, nth):
        if nth > times:
            return whole(handler, nth)
        start, size = handler.start(), len(handler.content)
        if start:
            handler.begin(206, size - start, Content_Range=f"bytes {start}-{size - 1}/{size}", ETag=handler.server.etag)
        else:
            handler.begin(200, size, ETag=handler.server.etag)
        handler.wfile.write(handler.content[start:start + after])
    return behave


def stalls(after, times=1):
    """Sends `after` bytes, then nothing, for the first requests."""
    def behave(handler, nth):
        if nth > times:
            return whole(handler, nth)
        handler.begin(200, len(handler.content), ETag=handler.server.etag)
        handler.wfile.write(handler.content[:after])
        handler.wfile.flush()
        handler.server.released.wait(5)
    return behave


def trickles(handler, nth):
    """A byte every 20 ms on the first request: never silent, never done."""
    if nth > 1:
        return whole(handler, nth)
    handler.begin(200, len(handler.content), ETag=handler.server.etag)
    for i in range(200):
        handler.wfile.write(handler.content[i:i + 1])
        handler.wfile.flush()
        if handler.server.released.wait(0.02):
            return


def announces(length):
    """A Content-Length that is not the body's."""
    def behave(handler, _nth):
        handler.begin(200, length)
        handler.wfile.write(handler.content)
    return behave


def answers(code, times=10**9, **headers):
    def behave(handler, nth):
        if nth > times:
            return whole(handler, nth)
        handler.begin(code, 5, **headers)
        handler.wfile.write(b"sorry")
    return behave


def sends(body, times=10**9):
    """Other bytes than the file, for the first requests."""
    def behave(handler, nth):
        if nth > times:
            return whole(handler, nth)
        handler.begin(200, len(body))
        handler.wfile.write(body)
    return behave


def ignores_ranges(handler, nth):
    """Half of the file first; then always the whole file, whatever was asked for."""
    handler.begin(200, len(handler.content))
    handler.wfile.write(handler.content[:len(handler.content) // 2] if nth == 1 else handler.content)


def shifts_ranges(handler, nth):
    """Half of the file first, then a range that begins elsewhere, then good."""
    if nth == 2:
        handler.begin(206, 10, Content_Range=f"bytes 3-12/{len(handler.content)}", ETag=handler.server.etag)
        handler.wfile.write(handler.content[3:13])
    else:
        (truncates(len(handler.content) // 2) if nth == 1 else whole)(handler, nth)


def has_no_length(handler, _nth):
    handler.begin(200)
    handler.wfile.write(handler.content)


def changes(handler, nth):
    """The file on the server is replaced between the first and the second request."""
    if nth == 1:
        return truncates(len(handler.content) // 2)(handler, nth)
    handler.server.etag = '"second"'
    handler.server.content = handler.server.second
    whole(handler, nth)


@contextlib.contextmanager
def running(content: bytes, **faults):
    """The address of a server: running(data, big=truncates(10)) serves /big."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.daemon_threads = True
    server.content, server.etag, server.asked = content, '"first"', {}
    server.faults = {f"/{path}": fault for path, fault in faults.items()}
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
        time.sleep(0)
