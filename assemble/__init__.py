"""Builders that make layers in process: debs, wheels, trees. Import `cache` only."""
