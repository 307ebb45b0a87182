import os

# Most of the time of these tests is LLVM's.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
