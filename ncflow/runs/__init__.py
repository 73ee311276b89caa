"""The run folder: file names, provenance, writer and reader. Only this package spells its file names."""
