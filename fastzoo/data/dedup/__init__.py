"""Algorithm 1 of the paper: a sample that shares an n-gram with one kept before it is dropped.

ngrams, kernels   words and characters in bytes; hashes of n-grams; compiled loops
greedy, memory    one machine: samples in order, one table of hashes
rounds, tasks     many machines: the same kept set, by steps of datatrove's pipelines
"""
