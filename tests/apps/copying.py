"""An application that copies and pickles its scope, and returns what it must not."""

import copy
import pickle
from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> Any:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            copy.deepcopy(scope)
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return None
    copies = copy.deepcopy(scope), pickle.loads(pickle.dumps(scope))  # noqa: S301
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": " ".join(one["path"] for one in copies).encode()})
    return 123
