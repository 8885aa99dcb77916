"""ONTO WHAT: devices; the only folder that imports jax."""
