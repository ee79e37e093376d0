"""Adapters: a file for each service, library or device."""
