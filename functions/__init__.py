"""The Lambda functions: a folder is a verb, one function each, or shared by them: `core`, `adapters`."""
