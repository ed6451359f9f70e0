"""Engines behind HTTP: pairs while somebody watches, and runs for the night, on one machine."""
