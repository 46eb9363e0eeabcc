"""One app mounted in another."""

import ml
from fastapi import FastAPI

app = FastAPI()
app.mount("/v1", ml.app)


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}
