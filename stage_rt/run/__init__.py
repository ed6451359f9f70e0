"""One data set being filled; `fill.fill` is its door.

job (what is asked) -> plan (samples, every file checked) -> workers (prepare, paint, finish) -> writer -> ledger
(what is done) -> report (what it looks like).
"""
