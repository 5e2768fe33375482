"""Stream a text to a browser that may lose its connection: uvicorn --app-dir examples fastapi_stream:app

A browser that comes back, to this process or another one, says which event it saw last (``Last-Event-ID``,
here a chunk's ``seq``), and the text goes on behind it.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, Header, HTTPException
from fastapi.responses import HTMLResponse, StreamingResponse

from genqueue import AsyncGeneration, AsyncGenerationClient, GenerationNotFoundError, GenqueueError

PAGE = """<pre></pre><script type="module">
const body = JSON.stringify(prompt("Go on with", "The capital of France is"))
const asked = await fetch("/generations", {method: "POST", body, headers: {"content-type": "application/json"}})
const events = new EventSource(`/generations/${await asked.json()}`), text = document.body.firstChild
events.onmessage = (event) => { text.textContent += JSON.parse(event.data) }
events.addEventListener("restart", (event) => { text.textContent = JSON.parse(event.data) })
events.addEventListener("end", () => events.close())
</script>"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncGenerationClient() as app.state.client:
        yield


app = FastAPI(lifespan=lifespan)
app.get("/", response_class=HTMLResponse)(lambda: PAGE)


@app.post("/generations")
async def submit(prompt: Annotated[str, Body(min_length=1)]) -> str:
    return (await app.state.client.submit(prompt, deadline_s=300.0)).id


@app.get("/generations/{id}")
async def stream(id: str, last_event_id: Annotated[int, Header()] = 0) -> StreamingResponse:
    generation = app.state.client.generation(id)
    try:
        await generation.status()
    except GenerationNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    return StreamingResponse(server_sent(generation, last_event_id), media_type="text/event-stream")


async def server_sent(generation: AsyncGeneration, from_seq: int) -> AsyncIterator[str]:
    try:
        async for chunk in generation.stream(from_seq):
            kind = "restart" if chunk.restarts else "message"
            yield f"event: {kind}\nid: {chunk.seq}\ndata: {json.dumps(chunk.text)}\n\n"
        end = (await generation.result()).meta[0]
    except GenqueueError as error:
        end = {"error": str(error)}
    yield f"event: end\ndata: {json.dumps(end)}\n\n"
