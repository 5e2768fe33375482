"""Hand LLM generations to a queue and read their tokens live."""
