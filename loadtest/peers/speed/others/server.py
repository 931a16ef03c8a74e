"""FastAPI, served by uvicorn. With SPEED_CLOSE in the environment every request asks for the close
of its connection."""

import os

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI()
KEPT = {"connection": "keep-alive", "keep-alive": "timeout=74"}
FIELDS = {} if "SPEED_CLOSE" in os.environ else KEPT


@app.get("/plaintext", response_class=PlainTextResponse)
async def plaintext():
    return PlainTextResponse("Hello, World!", headers=FIELDS)
