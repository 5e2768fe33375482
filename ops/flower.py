"""Flower's settings for who starts it by hand: celery -A genqueue_worker.app flower --conf=ops/flower.py

``genqueue flower`` is the same, and sees to it that it is not open to others.
"""

from genqueue_ops.flower import TASKS_COLUMNS, prepare
from genqueue_worker.app import app

prepare(app)
tasks_columns = TASKS_COLUMNS
persistent = True
