"""The Celery worker that runs generations on Hugging Face clients."""
