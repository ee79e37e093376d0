"""Command line of Mayfly."""
