"""Everything breaks under load, and nobody notices."""
