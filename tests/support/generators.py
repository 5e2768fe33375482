"""Settings of generators for tests."""

from typing import Any

from genqueue.settings import GeneratorSettings


def generator(url: str | None = "http://h", **fields: Any) -> GeneratorSettings:
    """A self-hosted one, or a serverless one if ``url`` is None."""
    place: dict[str, Any] = {"api_type": "text_generation_inference", "api_params": {"url": url}}
    if url is None:
        place = {"api_type": "serverless_inference_api", "api_params": {"model": "m"}}
    return GeneratorSettings.model_validate({**place, **fields})
