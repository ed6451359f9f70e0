"""Whether pairs help: the paper's protocol and its baselines (``stage_rt.quality``); needs the ``quality`` extra."""
