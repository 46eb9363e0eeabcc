"""The worked examples of CONTRIBUTING.md: patches of a model library and of a server, taken from there and run."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from services import PYTHON, run_service
from sink import assert_tiled, run_sink

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
# The libraries that the examples are about.
PINEWOOD = """
class Model:
    name = "larch"

    def predict(self, rows):
        return [2 * row for row in rows]
"""
OAKSERVE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
from wsgiref.handlers import SimpleHandler


class Server:
    def __init__(self, application, port):
        self.application = application
        self.port = port

    def run(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                environ = {"REQUEST_METHOD": self.command, "PATH_INFO": self.path, "SERVER_PROTOCOL": "HTTP/1.1"}
                environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()}
                environ |= {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": str(server.port)}
                SimpleHandler(self.rfile, self.wfile, None, environ).run(server.application)

        HTTPServer(("127.0.0.1", self.port), Handler).serve_forever()
"""
SERVICE = """
import json, os, sys
import stagetrace_contrib
from stagetrace.system.import_hooks import finder

stagetrace_contrib.__path__.append(os.path.join(os.environ["FOLDER"], "stagetrace_contrib"))
finder.add(json.loads(os.environ["PATCHES"]))
sys.path.insert(0, os.environ["FOLDER"])

from oakserve.server import Server
from pinewood.model import Model

model = Model()


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(model.predict([1, 2])).encode()]


Server(application, int(os.environ["PORT"])).run()
"""


def examples() -> tuple[dict[str, str], dict[str, str]]:
    """Return the patch files by their paths, and the lines of the registry."""
    files = re.findall(
        r"`(stagetrace_contrib/\w+\.py)`:\n\n```python\n(.*?)^```$", CONTRIBUTING, re.DOTALL | re.MULTILINE
    )
    lines = re.findall(r'^```python\n("[^\n]*,)\n```$', CONTRIBUTING, re.MULTILINE)
    return dict(files), ast.literal_eval("{" + "".join(lines) + "}")


@pytest.mark.usefixtures("services")
def test_the_examples_record_a_request_and_its_inference(tmp_path: Path) -> None:
    """Each is one file and one line: an entry span by the server's patch, its inference by that of the library."""
    files, patches = examples()
    assert (len(files), len(patches)) == (2, 2)
    files |= {"pinewood/model.py": PINEWOOD, "oakserve/server.py": OAKSERVE, "service.py": SERVICE}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with run_sink() as sink:
        env = {
            "STAGETRACE": "1",
            "STAGETRACE_DISABLED_INSTRUMENTATIONS": "wsgiref",  # by which the server of this test works
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "FOLDER": str(tmp_path),
            "PATCHES": json.dumps(patches),
        }
        with run_service(tmp_path, argv=[PYTHON, str(tmp_path / "service.py")], env=env) as service:
            trace_id, response = service.call("GET", "/predict")
            request = sink.request(trace_id)
    assert response.json() == [2, 4]
    assert_tiled(request)
    (inference,) = [stage for stage in request.stages if stage.name == "inference"]
    assert inference.attributes["ml.model.name"] == "larch"
    assert inference.attributes["ml.framework"] == "pinewood"
    assert inference.attributes["ml.batch.size"] == 2
    assert "cannot patch" not in service.log
