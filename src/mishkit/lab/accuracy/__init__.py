"""`mishkit accuracy`: the largest errors of the kernels, from samples or from every float32."""
