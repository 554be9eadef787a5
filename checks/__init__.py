"""Checks: one module a property. Import `cache` only."""
