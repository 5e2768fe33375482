"""How a call travels: connections, the exchange that a caller sees, and the answer as it comes."""
