"""From sources to a data set of ours: read and normalised, deduplicated, split, written with a manifest."""
