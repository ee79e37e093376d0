"""The Lambda functions: a folder is a verb (one function) or shared by them (`core` the rules, `adapters` the outside)."""
