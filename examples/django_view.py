"""A synchronous Django view that streams a text, in one file.

    pip install django; python examples/django_view.py runserver; curl -N localhost:8000 -d prompt='Once upon a time'

Under WSGI a view's thread waits for the model, so run as many threads as readers: gunicorn --threads 64.  A server
notices that a client left when it writes to it: who leaves stops the model with its next texts, not in the queue.
"""

import sys
from collections.abc import Iterator
from functools import cache

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_POST

from genqueue import Generation, GenerationClient, GenqueueError, InvalidRequestError, QueueFullError

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="an example's", ALLOWED_HOSTS=["*"])


@cache
def client() -> GenerationClient:
    """One for all threads of the process; made when first needed, so behind the server's fork."""
    return GenerationClient()


@require_POST
def generate(request: HttpRequest) -> HttpResponseBase:
    try:
        generation = client().submit(request.POST.get("prompt", ""), deadline_s=300.0)
    except InvalidRequestError as error:
        return HttpResponse(str(error), status=400)
    except QueueFullError as error:
        return HttpResponse(str(error), status=503, headers={"Retry-After": "10"})
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Generation": generation.id}
    return StreamingHttpResponse(texts(generation), headers=headers)


def texts(generation: Generation) -> Iterator[str]:
    try:
        for chunk in generation.stream():
            yield chunk.text
    except GenqueueError as error:  # a StreamRestartedError among them: what was sent cannot be taken back
        yield f"\n({error})"
    finally:
        generation.cancel()  # who leaves stops the model; what has ended stays as it is


urlpatterns = [path("", generate)]
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
