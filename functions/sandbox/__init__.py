"""Process that reads and runs uploaded files; no other module imports it."""
