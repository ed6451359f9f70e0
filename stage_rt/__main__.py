"""``python -m stage_rt``."""

from stage_rt.cli import main

main()
