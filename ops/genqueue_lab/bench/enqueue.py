"""How fast one process hands generations over, beside a bare redis-py loop: for the benchmark.

``python -m genqueue_lab.bench.enqueue SLICES PATH`` submits to the Redis of its settings, where no worker
runs, and writes JSON to PATH: for each way how many a second.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import redis

from genqueue import AsyncGenerationClient, GenerationClient, load_settings

_SLICE = 500
_PROMPT = "All work and no play makes Jack a dull boy."


async def rates(slices: int) -> dict[str, float]:
    """How many a second by each way, which take turns of 500: a plain SET, one submit after another, all at once."""
    taken_s = dict.fromkeys(("bare", "sync", "at_once"), 0.0)
    with redis.Redis.from_url(load_settings().redis_url) as bare, GenerationClient() as sync:
        async with AsyncGenerationClient() as at_once:
            for number in range(-1, slices):
                if number == 0:  # all have connected, and loaded what they need
                    taken_s = dict.fromkeys(taken_s, 0.0)
                began_s = time.perf_counter()
                for key in range(_SLICE):
                    bare.set(f"bench:{key}", _PROMPT, ex=600)
                taken_s["bare"] += time.perf_counter() - began_s
                began_s = time.perf_counter()
                for _ in range(_SLICE):
                    sync.submit(_PROMPT)
                taken_s["sync"] += time.perf_counter() - began_s
                began_s = time.perf_counter()
                await asyncio.gather(*(at_once.submit(_PROMPT) for _ in range(_SLICE)))
                taken_s["at_once"] += time.perf_counter() - began_s
    return {f"{way}_per_s": slices * _SLICE / seconds for way, seconds in taken_s.items()}


def main() -> None:
    """Measure, and write what was measured."""
    slices, path = sys.argv[1:]
    Path(path).write_text(json.dumps(asyncio.run(rates(int(slices)))))


if __name__ == "__main__":
    main()
