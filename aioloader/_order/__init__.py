"""WHICH and WHEN: pure arithmetic over positions; no I/O, no async."""
