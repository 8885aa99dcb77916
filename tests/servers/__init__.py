"""Servers for tests: processes of their own on 127.0.0.1."""
