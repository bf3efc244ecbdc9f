"""Algorithm 1 of the paper: a sample that shares an n-gram with one kept before it is dropped."""
