"""Scenes: a deterministic data set whose truth is known."""
