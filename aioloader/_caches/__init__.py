"""REMEMBERED: what has been loaded once, kept for the next time."""
