"""Where an operator is computed: plain torch on any device, and kernels that replace it."""
