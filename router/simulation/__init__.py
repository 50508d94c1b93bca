"""The pool on a virtual clock, to compare policies; nothing here is imported while serving."""
