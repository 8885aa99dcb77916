"""Datasets: lazy pipelines of elements, by index or by iteration."""
