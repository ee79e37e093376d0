"""Lambda: what no event will mend, every hour; and the dead letters."""
