"""Executors: run a command in a root made of layers. Import `cache` only (docs/executors.md)."""
