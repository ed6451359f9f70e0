"""How fast an engine is on the machine at hand, and where its time goes; `stage-rt bench` prints it."""
