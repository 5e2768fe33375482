"""Stream to a browser that may lose its connection: uvicorn --app-dir examples fastapi_stream:app

It needs `pip install fastapi uvicorn`.  A browser that comes back, to this process or another one, says which event it
saw last (``Last-Event-ID``, here a chunk's ``seq``), and the text goes on behind it.  So if it left for good, the model
goes on to its end or deadline.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, Header, HTTPException
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from genqueue import AsyncGenerationClient, GenqueueError, InvalidRequestError, QueueFullError

PAGE = """<pre></pre><script type="module">
const body = JSON.stringify(prompt("Go on with", "The capital of France is"))
const asked = await fetch("/generations", {method: "POST", body, headers: {"content-type": "application/json"}})
const events = new EventSource(`/generations/${await asked.json()}`), text = document.querySelector("pre")
events.onmessage = (event) => { text.textContent += JSON.parse(event.data) }
events.addEventListener("restart", (event) => { text.textContent = JSON.parse(event.data) })
events.addEventListener("end", () => events.close())
</script>"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncGenerationClient() as app.state.client:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@app.post("/generations")
async def submit(prompt: Annotated[str, Body()]) -> str:
    try:
        return (await app.state.client.submit(prompt, deadline_s=300.0)).id
    except (InvalidRequestError, QueueFullError) as error:
        raise HTTPException(400 if isinstance(error, InvalidRequestError) else 503, str(error)) from error


@app.get("/generations/{id}", response_class=EventSourceResponse)  # which no proxy holds back
async def stream(id: str, last_event_id: Annotated[int, Header()] = 0) -> AsyncIterator[ServerSentEvent]:
    generation = app.state.client.generation(id)
    try:
        async for chunk in generation.stream(last_event_id, resets=True):  # the page forgets what is void
            yield ServerSentEvent(data=chunk.text, event="restart" if chunk.restarts else None, id=str(chunk.seq))
        meta = (await generation.result()).meta[0]
        end = {"finish_reason": meta["finish_reason"], "usage": meta["usage"]}  # not the address of the model
    except GenqueueError as error:
        end = {"error": str(error)}
    yield ServerSentEvent(data=end, event="end")
