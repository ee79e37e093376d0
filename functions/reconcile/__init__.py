"""Hourly reconciliation, and the operations on dead letters."""
