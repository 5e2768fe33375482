"""The Haystack components beside the originals."""
