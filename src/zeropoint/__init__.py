from zeropoint import ops, backend
