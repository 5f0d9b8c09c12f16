"""Losses: pure functions, their weighted sum, and its tiles."""
