"""One generation, from its claim to its end."""
