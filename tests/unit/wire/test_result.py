"""A result as Celery has it."""

import json

from genqueue.wire.result import GenerationResult, celery_failure, celery_success


def test_celery_results_have_celerys_shape():
    result = GenerationResult(replies=["é"], meta=[{"model": "m"}])
    assert json.loads(celery_success("id", result, "2026-01-01T00:00:00+00:00")) == {
        "status": "SUCCESS",
        "result": {"replies": ["é"], "meta": [{"model": "m"}]},
        "traceback": None,
        "children": [],
        "date_done": "2026-01-01T00:00:00+00:00",
        "task_id": "id",
    }
    failure = json.loads(celery_failure("id", "FAILURE", "SomeError", "some.module", "words", "now"))
    assert failure["status"] == "FAILURE"
    assert failure["result"] == {"exc_type": "SomeError", "exc_message": ["words"], "exc_module": "some.module"}
