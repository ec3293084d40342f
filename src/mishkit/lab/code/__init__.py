"""What the kernels compile to: instructions on CPUs and GPUs, counted without running them."""
