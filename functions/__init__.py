"""The Lambda functions: a folder is a verb (one function) or shared (`core`: rules, `adapters`: the outside)."""
