"""Checkpoints that other programs wrote, as model folders (``stage_rt.export.importers``)."""
