"""Maps from free kernels to kernels of norm at most one."""
