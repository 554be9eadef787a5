"""Resolve what a target wants to exact files, and fetch them. Judges nothing. Imports `cache` only."""
