"""A stand-in for a model hub, on a port of this machine."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of one model, or refuses everything.

    Attributes
    ----------
    url
        Where it is.
    files
        The content of each file by its name.
    refusal
        Status and error code of every answer, or None to serve the files.
    stall_after
        Send so many bytes of a file, set `stalled`, and wait for `released`. None: all at once.
    sent
        The name of every file that was asked for.
    """

    def __init__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub._answer(self, body=True)

            def do_HEAD(self):
                hub._answer(self, body=False)

            def log_message(self, *_):
                pass

        self.files, self.refusal, self.stall_after, self.sent = {}, None, None, []
        self.stalled, self.released = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request, body):
        if self.refusal:
            status, code = self.refusal
            self._send(request, status, b"{}", body, {"X-Error-Code": code} if code else {})
        elif "/tree/" in request.path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"}
                for name, data in self.files.items()
            ]
            self._send(request, 200, json.dumps(tree).encode(), body)
        elif request.path.startswith("/api/"):
            facts = {"id": "someone/model", "sha": COMMIT, "siblings": []}
            self._send(request, 200, json.dumps(facts).encode(), body)
        else:
            name = request.path.rpartition("/")[2]
            self.sent += [name] if body else []
            data = self.files[name]
            headers = {"ETag": f'"{len(data):040x}"', "X-Repo-Commit": COMMIT}
            self._send(request, 200, data, body, headers)

    def _send(self, request, status, data, body, headers=None):
        request.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            request.send_header(name, str(value))
        request.end_headers()
        stop = self.stall_after
        with contextlib.suppress(OSError):  # the client has been ended
            if body and stop is not None and len(data) > stop:
                request.wfile.write(data[:stop])
                request.wfile.flush()
                self.stalled.set()
                self.released.wait(60)
                data = data[stop:]
            if body:
                request.wfile.write(data)
