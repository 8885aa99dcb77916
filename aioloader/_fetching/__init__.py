"""Fetching from what is far away: one policy for every source and every user's own function."""
