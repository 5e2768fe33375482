"""A generation's log, record and result."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import from_json

from genqueue import keys
from genqueue.errors import (
    GenerationNotFoundError,
    StoreError,
)
from genqueue.registry import signatures
from genqueue.registry.decoding import NEWER, is_newer, is_of_newer_version, text_of
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import PartialOutput, heard_if_readable
from genqueue.registry.script import Call, scripted
from genqueue.wire.events import Event, read_event
from genqueue.wire.problems import describe
from genqueue.wire.request import PARTS, GenerationRequest
from genqueue.wire.result import GenerationResult, Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """The registry's entry of one generation."""

    state: State
    generator: str
    priority: int
    attempt: int
    seq: int
    submitted_at: float
    started_at: float | None
    first_text_at: float | None
    ended_at: float | None
    completion_tokens: int
    outcome: Outcome | None
    retried_as: str | None = None
    waits_for: str | None = None


def read_log(generation_id: str, from_seq: int, limit: int = 1000) -> Call[list[Event]]:
    """Up to ``limit`` events with a number of at least ``from_seq``; [] when the log is gone.

    An entry that is no event under its own number was not written by a worker, and is passed over.  The answer raises
    StoreError for an event of a later version; an event of an unknown kind is an OtherEvent.
    """

    def decode(answer: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Event]:
        events = []
        for entry_id, fields in answer:
            raw = fields.get(b"e", b"")
            try:
                event = read_event(raw)
            except ValidationError as error:
                if entry_id.endswith(b"-0") and is_newer(raw):
                    problems = NEWER if is_of_newer_version(raw) else "; ".join(describe(error))
                    raise StoreError(
                        f"the log of generation {generation_id} holds an event we cannot read: {problems}"
                    ) from None
                continue
            if entry_id == b"%d-0" % event.seq:
                events.append(event)
        return events

    return Call(("XRANGE", keys.log(generation_id), f"{from_seq}-0", "+", "COUNT", str(limit)), decode)


_RECORD = tuple(field.name for field in dataclasses.fields(Record))


def _record(generation_id: str, answer: Sequence[bytes | None]) -> Record | None:
    """The record; None where there is none.  Raises StoreError for one that this version cannot read."""
    field = dict(zip(_RECORD, answer, strict=True))
    if field["state"] is None:
        return None
    started_at, first_text_at, ended_at = field["started_at"], field["first_text_at"], field["ended_at"]
    outcome, retried_as = field["outcome"], field["retried_as"]
    try:
        return Record(
            state=State(text_of(field["state"])),
            generator=text_of(field["generator"], "strict"),
            priority=int(field["priority"] or 0),
            attempt=int(field["attempt"] or 0),
            seq=int(field["seq"] or 0),
            submitted_at=float(field["submitted_at"] or math.nan),
            started_at=float(started_at) if started_at else None,
            first_text_at=float(first_text_at) if first_text_at else None,
            ended_at=float(ended_at) if ended_at else None,
            completion_tokens=int(field["completion_tokens"] or 0),
            outcome=Outcome.model_validate_json(outcome) if outcome else None,
            retried_as=text_of(retried_as, "strict") if retried_as else None,
            waits_for=text_of(field["waits_for"], "strict") if field["waits_for"] else None,
        )
    except ValueError:  # which would quote it
        why = f": {NEWER}" if outcome and is_of_newer_version(outcome) else ""
        raise StoreError(f"the record of generation {generation_id} cannot be read{why}") from None


def read_record(generation_id: str) -> Call[Record]:
    """The registry's entry; raises GenerationNotFoundError when it is gone, StoreError when it cannot be read."""

    def decode(answer: list[bytes | None]) -> Record:
        record = _record(generation_id, answer)
        if record is None:
            raise GenerationNotFoundError(generation_id)
        return record

    return Call(("HMGET", keys.generation(generation_id), *_RECORD), decode)


def read_home(generation_id: str) -> Call[str]:
    """The generator of a generation that is to be ended, whatever its record lacks; "default" if it names none."""
    return Call(("HGET", keys.generation(generation_id), "generator"), lambda answer: text_of(answer or b"default"))


def read_records(generation_ids: Sequence[str]) -> Call[list[Record | None]]:
    """The registry's entries in that order; None for one that is gone, or cannot be read."""

    def decode(answer: list[list[bytes | None]]) -> list[Record | None]:
        records: list[Record | None] = []
        for generation_id, one in zip(generation_ids, answer, strict=True):
            try:
                records.append(_record(generation_id, one))
            except StoreError:  # it keeps nobody from the others
                records.append(None)
        return records

    records = [keys.generation(generation_id) for generation_id in generation_ids]
    return scripted(signatures.Read(generations=records, names=_RECORD), decode)


def read_request(generation_id: str) -> Call[GenerationRequest | None]:
    """The request of a generation that waits, runs or is a dead letter; None once it is forgotten.

    Raises StoreError for a request that a newer version wrote.
    """

    def decode(answer: bytes | None) -> GenerationRequest | None:
        try:
            return None if answer is None else GenerationRequest.model_validate_json(answer)
        except ValidationError as error:
            problems = "; ".join(describe(error, PARTS))
            raise StoreError(f"the request of generation {generation_id} cannot be read: {problems}") from None

    return Call(("HGET", keys.generation(generation_id), "request"), decode)


def read_result(generation_id: str) -> Call[GenerationResult | None]:
    """The result of a finished generation; None while there is none, or when it ended otherwise."""

    def decode(answer: bytes | None) -> GenerationResult | None:
        try:
            meta = from_json(answer or b"null")
            result = GenerationResult.model_validate(meta["result"]) if meta["status"] == "SUCCESS" else None
            return result if result is not None and result.replies and result.meta else None
        except (ValueError, TypeError, KeyError):
            return None  # none of ours: the id is another Celery task's

    return Call(("GET", keys.result(generation_id)), decode)


def has_result(generation_id: str) -> Call[bool]:
    """Is Celery's result key of that id there, from any writer?"""
    return Call(("GET", keys.result(generation_id)), lambda answer: answer is not None)


def read_text(generation_id: str) -> Call[str]:
    """The text so far of a generation that runs or that ended without a result; "" when there is none."""
    return Call(("GET", keys.text(generation_id)), lambda answer: heard_if_readable(answer).text)


def read_said(generation_id: str) -> Call[PartialOutput]:
    """The text so far and, of a chat, its reasoning and tool calls; they are kept as long as the text."""
    return Call(("GET", keys.text(generation_id)), heard_if_readable)


def queue_position(generation_id: str, generator: str) -> Call[int | None]:
    """How many accepted generations come before this one; None when it no longer waits."""
    return Call(("ZRANK", keys.waiting(generator), generation_id), lambda answer: answer)
