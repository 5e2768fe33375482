"""How Redis is reached: the only folder that imports ``redis``."""
