"""The application of flask_ml, which tells what is imported by other threads than the main one."""

import sys
import threading

from flask_ml import app

seen: list[str] = []
main = threading.get_native_id()


class Watching:
    """Finds nothing, and notes who looks for what."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if threading.get_native_id() != main:
            seen.append(name)


sys.meta_path.insert(0, Watching())


@app.get("/imported")
def imported() -> list[str]:
    return seen
