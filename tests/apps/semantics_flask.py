"""A service with every way in which Flask can answer, and code that speaks to the current span."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import semantics_span
from flask import Blueprint, Flask, Response, abort, redirect, request, stream_with_context
from werkzeug.middleware.dispatcher import DispatcherMiddleware

flask_app = Flask(__name__, static_folder=str(Path(__file__).parent / "static"), static_url_path="/static")


class HandledError(Exception):
    pass


@flask_app.get("/health")
def health() -> dict[str, bool]:
    return {"ok": True}


@flask_app.get("/plain")
def plain() -> dict[str, bool]:
    return {"ok": True}


@flask_app.get("/items/<item_id>")
def item(item_id: str) -> dict[str, str]:
    return {"id": item_id}


@flask_app.get("/files/<path:name>")
def files(name: str) -> dict[str, str]:
    return {"name": name}


@flask_app.get("/slash/")
def slash() -> dict[str, bool]:
    return {"ok": True}


@flask_app.post("/validated")
def validated() -> Any:
    number = request.get_json()["number"]
    return ({"number": number}, 201) if isinstance(number, int) else ({"detail": "no number"}, 422)


@flask_app.get("/status/<int:code>")
def status(code: int) -> Any:
    return {"as": "asked"}, code


@flask_app.get("/abort/<int:code>")
def aborts(code: int) -> Any:
    abort(code)


@flask_app.get("/raise")
def raises() -> None:
    raise ValueError("the app's own error: ü")


@flask_app.get("/raise-in-stream")
def raise_in_stream() -> Response:
    def body() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("in the stream")

    return Response(body())


@flask_app.errorhandler(HandledError)
def on_handled(error: HandledError) -> Any:
    return semantics_span.note_handled(error), 418


@flask_app.get("/handled")
def handled() -> None:
    raise HandledError("by a handler")


@flask_app.get("/stream")
def stream() -> Response:
    return Response(f"chunk {number}\n".encode() for number in range(3))


@flask_app.get("/stream-in-context")
def stream_in_context() -> Response:
    def body() -> Iterator[bytes]:
        for number in range(3):
            yield f"{request.path} {number}\n".encode()

    return Response(stream_with_context(body()))


@flask_app.get("/redirect")
def redirects() -> Any:
    return redirect("/plain")


flask_app.get("/user")(semantics_span.user)
flask_app.get("/user-exception")(semantics_span.user_exception)
flask_app.get("/child")(semantics_span.child)
flask_app.get("/context")(semantics_span.context)


@flask_app.get("/override")
def override() -> dict[str, bool]:
    return semantics_span.override(**{"url.scheme": "gopher"})


@flask_app.get("/headers")
def headers() -> Response:
    answer = Response('{"ok": true}', mimetype="application/json")
    semantics_span.add_headers(answer.headers)
    answer.set_cookie("session", "secret cookie")
    return answer


things = Blueprint("things", __name__, url_prefix="/things")


@things.get("/<int:number>")
def thing(number: int) -> dict[str, int]:
    return {"thing": number}


api = Blueprint("api", __name__, url_prefix="/api")
api.register_blueprint(things)
flask_app.register_blueprint(api)

sub = Flask("sub")


@sub.get("/items/<int:item_id>")
def sub_item(item_id: int) -> dict[str, int]:
    return {"item_id": item_id}


@sub.get("/raise")
def sub_raise() -> None:
    raise ValueError("in a mounted app")


app: Any = DispatcherMiddleware(flask_app, {"/sub": sub})
