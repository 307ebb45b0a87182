import pathlib
import sys

# The tests' own helper modules, with pytest's importlib mode.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
