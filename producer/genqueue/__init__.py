"""Hand LLM generations to a queue and read their tokens live."""

from genqueue.calls import WorkerStatus
from genqueue.client import AsyncGeneration, AsyncGenerationClient, Generation, GenerationClient
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
    LogExpiredError,
    NotDeadError,
    QueueFullError,
    RedisUnavailableError,
    ResultTimeoutError,
    StoreError,
    UnknownGeneratorError,
)
from genqueue.messages import Chunk, Event, GenerationResult, Token, ToolCallDelta
from genqueue.outcome import DeadLetter, DeadLetterDetail, GenerationStatus
from genqueue.settings import GeneratorSettings, Settings, load_settings

__all__ = [
    "AsyncGeneration",
    "AsyncGenerationClient",
    "Chunk",
    "ConfigError",
    "DeadLetter",
    "DeadLetterDetail",
    "Event",
    "Generation",
    "GenerationCancelledError",
    "GenerationClient",
    "GenerationError",
    "GenerationExpiredError",
    "GenerationFailedError",
    "GenerationNotFoundError",
    "GenerationRejectedError",
    "GenerationResult",
    "GenerationStatus",
    "GeneratorSettings",
    "GenqueueError",
    "IdempotencyConflictError",
    "InvalidRequestError",
    "LogExpiredError",
    "NotDeadError",
    "QueueFullError",
    "RedisUnavailableError",
    "ResultTimeoutError",
    "Settings",
    "StoreError",
    "Token",
    "ToolCallDelta",
    "UnknownGeneratorError",
    "WorkerStatus",
    "load_settings",
]
