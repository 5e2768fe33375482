"""Start Redis, a model endpoint and workers: the demo, and the stand-in for TGI."""
