"""Long runs under faults: programs to be run by hand, and their short forms as tests."""
