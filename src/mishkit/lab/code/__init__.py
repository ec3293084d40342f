"""What the kernels become: their instructions on CPUs and GPUs, counted without running them."""
