"""An endpoint's word for its answer's end, where others than the caller see it.

Pure.  The word is the endpoint's: a careless or hostile one could put a prompt or its token there.  So logs, events,
traces, Flower and terminals get one of few words.  The result alone has the endpoint's own.
"""

_REASONS = frozenset(
    [
        *("length", "eos_token", "stop_sequence"),  # TGI
        *("stop", "tool_calls", "function_call", "content_filter"),  # OpenAI
        *("error", "abort", "cancelled", "limit", "eos", "max_tokens", "end_turn", "tool_use", "refusal"),
        *("model_length", "insufficient_system_resource", "sensitive", "safety", "recitation"),
        *("repetition", "network_error"),
        *("tool_call", "complete", "pause_turn", "model_context_window_exceeded", "malformed_function_call"),
    ]
)
"""What endpoints' engines and providers say at an end."""


def shown_reason(finish_reason: str | None) -> str | None:
    """A ``finish_reason`` for whoever is not the caller: a word that is known, in its case, else ``_OTHER``.

    A server may say anything there: the prompt, or the token that it was sent.
    """
    if finish_reason is None or (finish_reason.isascii() and finish_reason.lower() in _REASONS):
        return finish_reason
    return "_OTHER"
