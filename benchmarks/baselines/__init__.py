"""What ncflow is held against: the usual ways, written for these benchmarks after what they are known to do."""
