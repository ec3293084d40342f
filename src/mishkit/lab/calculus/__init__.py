"""`mishkit explain`, `plot` and `fit`: functions as mathematics."""
