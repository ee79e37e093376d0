"""Code that runs only in sandbox processes: unpack, compile, check, measure uploads."""
