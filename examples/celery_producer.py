"""Ask from a service that has Celery and nothing of genqueue.

    GENQUEUE_REDIS_URL=redis://127.0.0.1:6379/0 python examples/celery_producer.py 'Once upon a time' 'The sky is'

The workers adopt what is sent as if it had been submitted: it is as safe, and its result is Celery's.
"""

import os
import sys

from celery import Celery, exceptions

redis_url = os.environ.get("GENQUEUE_REDIS_URL", "redis://127.0.0.1:6379/0")
app = Celery("asking", broker=redis_url, backend=redis_url)

asked = {
    prompt: app.send_task(
        "genqueue.generate",
        kwargs={
            "prompt": prompt,
            "generation_kwargs": {"max_new_tokens": 40, "temperature": 0.7},
            "stop_words": ["\n\n"],
            "deadline_s": 60.0,
        },
        queue="generate.default",  # one queue for each generator
        priority=3,  # 0 first, 9 last
    )
    for prompt in sys.argv[1:]
}

for prompt, answer in asked.items():
    try:
        result = answer.get(timeout=90)
    except exceptions.TimeoutError:
        answer.revoke(terminate=True)  # cancels it, wherever it is
        sys.exit(f"no answer to {prompt!r} in time")
    except Exception as error:  # what the worker says of it
        sys.exit(f"no answer to {prompt!r}: {error}")
    meta = result["meta"][0]
    print(f"{prompt}{result['replies'][0]}")
    print(f"  {meta['finish_reason']}, {meta['usage']['completion_tokens']} tokens, {meta['timings']['total_s']:.1f} s")
