"""Training of small STAGE models from an MVTec-layout folder (``stage_rt.training``); needs the ``export`` extra."""
