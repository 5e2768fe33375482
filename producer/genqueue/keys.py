r"""Every Redis key, list and channel of genqueue.

key                              type     TTL                     written by        read by
genqueue:generation:<id>         hash     keep_s, then result_ttl_s  client, worker    client, worker
genqueue:generation:<id>:log     stream   keep_s, then log_ttl_s     worker, cancel    client, worker
genqueue:generation:<id>:text    string   keep_s, then result_ttl_s  worker            worker, client
genqueue:generation:<id>:live    channel  -                       worker, cancel    client
genqueue:waiting:<generator>     zset     keep_s                  client, worker    client, worker
genqueue:leases                  zset     keep_s                  worker            worker
genqueue:delayed                 zset     keep_s                  worker            worker
genqueue:deadlines               zset     keep_s                  client, worker    worker
genqueue:rung                    zset     keep_s                  worker            worker
genqueue:swept                   hash     keep_s                  worker            worker
genqueue:dead                    zset     keep_s                  worker, client    client
genqueue:claimed:<generator>     hash     keep_s                  worker            worker
genqueue:idempotency:<key>       string   result_ttl_s            client            client
genqueue:generators              hash     keep_s                  worker            client
genqueue:places                  hash     keep_s                  worker            client
genqueue:workers                 hash     30 s                    worker            client
genqueue:untold:<owner>          hash     keep_s                  worker            worker
genqueue:worker:<owner>          channel  -                       cancel            worker
generate.<generator>[sep<p>]     list     none (Celery's queue)   client, worker    worker (Celery)
celery-task-meta-<id>            string   result_ttl_s            worker, Celery    client, Celery
celery-task-meta-<id>            channel  -                       worker, Celery    client, Celery
genqueue:live                    channel  -                       nobody            client

``keep_s`` is how long an accepted generation may rest without anything happening to it; a dead
letter (what failed, and might not another time) rests so long with its request and its text.
The scores: ``waiting`` orders by priority and then by submit time (one number,
made in ``common.lua``); ``leases``, ``delayed``, ``deadlines`` and ``rung`` hold epoch
milliseconds of Redis's own clock: when the lease ends, when the next attempt is due, when
it is too late, when a doorbell was last rung again or seen at the front of its list; so does
``dead``: the end.  A running generation whose lease ran out waits like a queued one.
``claimed`` holds for each priority the highest waiting score that was claimed; ``swept`` when a worker
last looked for lost leases, from when on they may be taken, when each queue was last looked through, and how far
the sweepers have gone through what lies ahead.

Celery's queue of a generator is one list per priority: 0 is ``generate.<generator>``
itself, 1 to 9 have the suffix that kombu's Redis transport gives them
(``kombu.transport.redis.Channel.sep``).

Each script declares the keys and channels that it is given, and the prefixes behind which it puts the ids and names
that it finds in Redis (:mod:`genqueue.registry.signatures`).
"""

EVERY = "genqueue:*"
"""The pattern of all keys and channels that are not Celery's."""
PRIORITIES = range(10)
PRIORITY_SEPARATOR = "\x06\x16"
QUEUE_PREFIX = "generate."
LEASES = "genqueue:leases"
DELAYED = "genqueue:delayed"
DEADLINES = "genqueue:deadlines"
RUNG = "genqueue:rung"
SWEPT = "genqueue:swept"
DEAD = "genqueue:dead"
GENERATORS = "genqueue:generators"
PLACES = "genqueue:places"
WORKERS = "genqueue:workers"
SILENT = "genqueue:live"
"""A channel on which nothing is published: listening to it makes a connection one that can listen."""
MOST_ID_BYTES = 512


def names_a_generation(generation_id: str) -> bool:
    """Whether it may be an id: printable, of 1 to 512 bytes, and not such that its key is another generation's.

    Half of a surrogate pair, which JSON can spell and Redis cannot be sent, is not printable.
    """
    return (
        generation_id.isprintable()
        and 1 <= len(generation_id.encode()) <= MOST_ID_BYTES
        and not generation_id.endswith((":log", ":text"))
    )


def generation(generation_id: str) -> str:
    """The registry's entry of one generation: request, state, attempt, timestamps."""
    return f"genqueue:generation:{generation_id}"


def log(generation_id: str) -> str:
    """The numbered events of one generation; the entry id is ``<seq>-0``."""
    return f"genqueue:generation:{generation_id}:log"


def text(generation_id: str) -> str:
    """The text so far, and what was thought: what the next attempt continues and a cancel keeps."""
    return f"genqueue:generation:{generation_id}:text"


def live(generation_id: str) -> str:
    """The channel on which one generation's events are published as JSON arrays."""
    return f"genqueue:generation:{generation_id}:live"


def waiting(generator: str) -> str:
    """The accepted generations of one generator that no worker has claimed."""
    return f"genqueue:waiting:{generator}"


def newest_claimed(generator: str) -> str:
    """How far one generator's queue has been served: the highest waiting score claimed, by priority."""
    return f"genqueue:claimed:{generator}"


def idempotency(key: str) -> str:
    """The generation id that a caller's idempotency key stands for."""
    return f"genqueue:idempotency:{key}"


def worker(owner: str) -> str:
    """The channel on which one worker process is told ids to cancel."""
    return f"genqueue:worker:{owner}"


def untold(owner: str) -> str:
    """The cancels that one worker process is to tell of, and has not said that it did."""
    return f"genqueue:untold:{owner}"


def queue(generator: str) -> str:
    """The Celery queue of one generator."""
    return QUEUE_PREFIX + generator


def doorbell(generator: str, priority: int) -> str:
    """The list in which Celery looks for one generator's messages of one priority."""
    return queue(generator) if priority == 0 else f"{queue(generator)}{PRIORITY_SEPARATOR}{priority}"


def result(generation_id: str) -> str:
    """Celery's result key and, under the same name, its result channel."""
    return f"celery-task-meta-{generation_id}"


GENERATOR_NAME = r"^[A-Za-z0-9._-]{1,64}$"
"""What a generator may be called: it is part of keys, queues and Celery's ``-Q``."""
TASK_NAME = "genqueue.generate"
"""The Celery task of which each doorbell is a message."""
