"""The store and what it is made of: canonical JSON, digests, errors, deterministic archives.

Knows about nothing else in the project.
"""
