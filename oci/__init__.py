"""Layers to images: layout, export, registry, engine, attestations. Imports `cache` only."""
