"""What a service holds: a client, its generations and their readers, blocking and for asyncio."""
