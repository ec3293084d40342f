"""What computes an operator: plain torch on any device, and kernels that replace it."""
