"""What is trained: each objective is a module that takes a batch and returns its loss and the parts of it."""
