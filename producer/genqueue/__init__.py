"""Hand LLM generations to a queue and read their tokens live."""

import sys

try:
    from genqueue.client.aio import AsyncGeneration, AsyncGenerationClient
    from genqueue.client.reading import AsyncReading, Reading
    from genqueue.client.sync import Generation, GenerationClient
    from genqueue.client.views import DeadLetter, DeadLetterDetail, GenerationStatus
    from genqueue.errors import (
        ConfigError,
        GenerationCancelledError,
        GenerationError,
        GenerationExpiredError,
        GenerationFailedError,
        GenerationNotFoundError,
        GenerationRejectedError,
        GenqueueError,
        IdempotencyConflictError,
        InvalidRequestError,
        LogBrokenError,
        LogExpiredError,
        NotDeadError,
        QueueFullError,
        RedisUnavailableError,
        ResultTimeoutError,
        StoreError,
        StreamRestartedError,
        UnknownGeneratorError,
    )
    from genqueue.registry.fleet import Overview, QueueStatus, WorkerStatus
    from genqueue.registry.lifecycle import State
    from genqueue.registry.timing import Timings
    from genqueue.settings import GeneratorSettings, Settings, load_settings
    from genqueue.wire.events import (
        Cancelled,
        Chunk,
        Event,
        Failed,
        Finished,
        OtherEvent,
        Reset,
        Resumed,
        Started,
        Token,
        ToolCallDelta,
        Waking,
    )
    from genqueue.wire.request import GenerationRequest
    from genqueue.wire.result import GenerationResult
except KeyboardInterrupt:
    # Of the command `genqueue`, whose script can import nothing before this, or of `python -m genqueue`.
    if sys.argv[0].rpartition("/")[2] != "genqueue" and "-m genqueue" not in " ".join(sys.orig_argv):
        raise
    sys.exit(130)

__all__ = [
    "AsyncGeneration",
    "AsyncGenerationClient",
    "AsyncReading",
    "Cancelled",
    "Chunk",
    "ConfigError",
    "DeadLetter",
    "DeadLetterDetail",
    "Event",
    "Failed",
    "Finished",
    "Generation",
    "GenerationCancelledError",
    "GenerationClient",
    "GenerationError",
    "GenerationExpiredError",
    "GenerationFailedError",
    "GenerationNotFoundError",
    "GenerationRejectedError",
    "GenerationRequest",
    "GenerationResult",
    "GenerationStatus",
    "GeneratorSettings",
    "GenqueueError",
    "IdempotencyConflictError",
    "InvalidRequestError",
    "LogBrokenError",
    "LogExpiredError",
    "NotDeadError",
    "OtherEvent",
    "Overview",
    "QueueFullError",
    "QueueStatus",
    "Reading",
    "RedisUnavailableError",
    "Reset",
    "ResultTimeoutError",
    "Resumed",
    "Settings",
    "Started",
    "State",
    "StoreError",
    "StreamRestartedError",
    "Timings",
    "Token",
    "ToolCallDelta",
    "UnknownGeneratorError",
    "Waking",
    "WorkerStatus",
    "load_settings",
]
