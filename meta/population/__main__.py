"""`python -m meta.population`: see `command.py`."""

from absl import flags

from export import command as commands
from meta.population import command

flags.adopt_module_key_flags(command)

if __name__ == "__main__":
    commands.run(command.main)
