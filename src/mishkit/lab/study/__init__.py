"""`mishkit compare`: networks trained with several activations, and the report on them."""
