"""The doorbell: what a worker makes of Celery and kombu."""
