"""When a sequence ends, and what its text is."""

from collections.abc import Sequence

from genqueue_ops.standin.engine import Step, Token
from genqueue_ops.standin.protocol import FinishReason, stop_matches

_KEPT_CHARS = 300  # TGI's model server matches stop strings in a window of this size


class Decoded:
    """Collects the tokens of one sequence and says when it is finished.

    Args:
        max_new_tokens: 1 or more.
        stop: stop strings.
    """

    def __init__(self, max_new_tokens: int, stop: tuple[str, ...]) -> None:
        self.tokens: list[Token] = []
        self.top_tokens: list[Sequence[Token]] = []
        self.finish_reason: FinishReason | None = None
        self._max_new_tokens = max_new_tokens
        self._stop = stop
        self._tail = ""

    def push(self, step: Step) -> FinishReason | None:
        """Take one step; the reason if it is the last one.

        The order of the checks is TGI's: the end token at ``max_new_tokens`` counts as ``length``.
        """
        token = step.token
        self.tokens.append(token)
        self.top_tokens.append(step.top_tokens)
        if len(self.tokens) >= self._max_new_tokens:
            self.finish_reason = "length"
        elif step.ends:
            self.finish_reason = "eos_token"
        elif self._stop:
            self._tail = (self._tail + token.text)[-_KEPT_CHARS:]
            if stop_matches(self._tail, self._stop):
                self.finish_reason = "stop_sequence"
        return self.finish_reason

    @property
    def text(self) -> str:
        """``generated_text`` without the prompt: everything but special tokens."""
        return "".join(token.text for token in self.tokens if not token.special)

    @property
    def logprob(self) -> float:
        """Mean log probability, by which ``best_of`` chooses."""
        return sum(token.logprob for token in self.tokens) / max(1, len(self.tokens))
