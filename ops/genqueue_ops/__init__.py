"""Start Redis, a model server and workers; demonstrate, measure and check genqueue."""
