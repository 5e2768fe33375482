"""Flower's settings for Celery's own command: celery -A genqueue_worker.app flower --conf=ops/flower.py

They are those of ``genqueue flower``, which needs no file; like it this listens on 127.0.0.1 if nothing is said, and
does not start open where others can reach it.
"""

from pathlib import Path

from tornado.options import options

from genqueue.errors import ConfigError
from genqueue.terminal import one_line
from genqueue_ops.flower import SETTINGS, prepare
from genqueue_ops.flower_gate import GATED, keep_private, refusal
from genqueue_worker.app import app

prepare(app)
address = options.address or "127.0.0.1"
_given = {
    f"FLOWER_{name.upper()}": ",".join(value) if isinstance(value, list) else str(value)
    for name, value in options.items()
    if name in GATED and value
}
_refused = refusal(_given, address)
if _refused is not None:
    raise SystemExit(one_line(f"genqueue: {_refused}"))
try:
    keep_private(Path(options.db), is_own_folder=False)
except ConfigError as _error:
    raise SystemExit(one_line(f"genqueue: {_error}")) from None
globals().update(SETTINGS)
