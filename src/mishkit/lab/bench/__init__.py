"""`mishkit bench`: what every function costs on this machine."""
