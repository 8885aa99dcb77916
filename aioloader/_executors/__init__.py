"""WHO: where work runs."""
