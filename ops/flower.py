"""Flower's settings for Celery's own command: celery -A genqueue_worker.app flower --conf=ops/flower.py

They are those of ``genqueue flower``, which needs no file: our columns, and a memory.  The gate needs no file either:
the app brings it along (:func:`genqueue_worker.flower.gate`).
"""

from genqueue_worker.flower import SETTINGS

globals().update(SETTINGS)
