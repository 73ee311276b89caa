"""The run folder: names of its files, what wrote it, writer and reader. No other room spells a file name of it."""
