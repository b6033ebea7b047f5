"""Readers of what the owners of a dataset distribute."""
