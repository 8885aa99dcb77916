"""Measurements of aioloader, each against a limit that is measured in the same run."""
