"""Ask from a service that has Celery and nothing of genqueue.

    GENQUEUE_REDIS_URL=redis://127.0.0.1:6379/0 python examples/celery_producer.py 'Once upon a time' 'The sky is'

The workers adopt what is sent as if it had been submitted: it is as safe, and its result is Celery's.  Until it
ends ``answer.revoke(terminate=True)`` cancels it, where Redis lets its user speak to workers (the producer of
ops/redis/users.acl may not).
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
            "deadline_s": 60.0,  # from when a worker has it
        },
        expires=60.0,  # if none has it by then, none will
        queue="generate.default",  # one queue for each generator
        priority=3,  # 0 first, 9 last
    )
    for prompt in sys.argv[1:] or ["Once upon a time"]
}

failures = []
for prompt, answer in asked.items():
    try:
        result = answer.get(timeout=130)
    except exceptions.TimeoutError:  # by now nothing runs, or will: each has expired
        sys.exit(f"no answer to {prompt!r} in time: does a worker run?")
    except Exception as error:  # what the worker says of it
        failures.append(f"no answer to {prompt!r}: {error}")
        continue
    meta = result["meta"][0]
    print(f"{prompt}{result['replies'][0]}")
    print(f"  {meta['finish_reason']}, {meta['usage']['completion_tokens']} tokens, {meta['timings']['total_s']:.1f} s")
sys.exit("\n".join(failures) or 0)
