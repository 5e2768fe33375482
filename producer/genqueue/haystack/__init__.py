"""Haystack's components for Hugging Face models, with the queue in between.

The constructors, ``run``, ``run_async``, outputs and streaming chunks are those of the components of the
same name in Haystack 2 (docs/haystack.md has the differences).  The model is called by a
worker: neither an address nor a token of a component leaves its process.
"""

import contextlib

from genqueue.haystack.chat_generator import HuggingFaceAPIChatGenerator
from genqueue.haystack.generator import HuggingFaceAPIGenerator
from genqueue.haystack.target import HFGenerationAPIType

with contextlib.suppress(ImportError):  # Haystack 3 loads pipelines of known packages only
    from haystack.core.serialization import allow_deserialization_module

    allow_deserialization_module(__name__)

__all__ = ["HFGenerationAPIType", "HuggingFaceAPIChatGenerator", "HuggingFaceAPIGenerator"]
