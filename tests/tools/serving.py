"""A local server that has a text, and many processes that download it."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def served(raw, pause_s=0.2):
    """A server on this machine that has `raw`; yields its address and the requests that came."""
    came = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(self.path)
            time.sleep(pause_s)  # the others have time to come, too
            self.send_response(200)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/input.txt", came
        finally:
            server.shutdown()
            thread.join()


def side_by_side(program, cache, n):
    """Run n processes of a program at the same time; return what each said on standard error."""
    own = dict.fromkeys(("XDG_CACHE_HOME", "LOCALAPPDATA"), str(cache)) | {"no_proxy": "127.0.0.1"}
    own |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    others = {k: v for k, v in os.environ.items() if k not in ("MINIGPT_CORPUS", "http_proxy")}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(i)],
            env=others | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(n)
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * n, said
    return said
