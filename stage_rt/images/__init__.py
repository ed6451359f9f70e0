"""Photographs and masks: read, prepared for the networks, and put together again with what was painted."""
