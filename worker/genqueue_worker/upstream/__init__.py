"""Calls of model endpoints: which is asked, how, and what it answers."""
