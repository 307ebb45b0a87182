import os
import pathlib
import sys

# Most of the time of these tests is LLVM's. The tests of lopt_keras, of what users run, are
# compiled as users compile.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# The tests' own helper modules, with pytest's importlib mode.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
