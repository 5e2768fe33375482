"""Requests, events and results, as they travel and are kept: pydantic, versioned, pure.

A request, an event and an outcome have a version ``v``; a reader refuses a newer one rather
than misread it.  Within a version an event or an outcome may hold fields that a reader does
not know, and ignores; there may be kinds of events that it does not know
(:class:`genqueue.wire.events.OtherEvent`).  A request may not: a worker would leave undone what
it does not know, so it leaves such a request to newer workers, and workers are upgraded before
producers (``docs/deploy.md``).
"""
