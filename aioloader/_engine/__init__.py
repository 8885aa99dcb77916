"""MOVED: the narrow waist that drives tickets through slots."""
