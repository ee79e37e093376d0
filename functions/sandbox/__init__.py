"""The throw-away process that reads and runs uploaded files. Nothing imports it but itself."""
