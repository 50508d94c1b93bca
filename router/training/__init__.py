"""Training and evaluation of the classifier; nothing here runs while serving."""
