"""The clients, their generations and their readers, blocking and for asyncio."""
