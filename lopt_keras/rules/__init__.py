"""Update rules: pure functions from gradients to steps, one network a file."""

from lopt_keras.rules.adam_sized_muon import AdamSizedMuon
from lopt_keras.rules.base import Signal, Signals, State, UpdateRule
from lopt_keras.rules.cosine_adamw import CosineAdamW
from lopt_keras.rules.direction_mixture import DirectionMixture
from lopt_keras.rules.factored_mlp import FactoredMLP
from lopt_keras.rules.hand_designed import SGD, Adam, AdamW
from lopt_keras.rules.hierarchical import Hierarchical
from lopt_keras.rules.learned_hyperparameters import LearnedHyperparameters
from lopt_keras.rules.lion import Lion
from lopt_keras.rules.mlp import MLP
from lopt_keras.rules.muon import Muon
from lopt_keras.rules.nadam import Nadam
from lopt_keras.rules.normalized_mlp import NormalizedMLP
from lopt_keras.rules.recurrent import Recurrent
from lopt_keras.rules.registry import get, register, serialize
from lopt_keras.rules.rmsprop import RMSprop
from lopt_keras.rules.schedule_free_adamw import ScheduleFreeAdamW
from lopt_keras.rules.scheduled import Scheduled
from lopt_keras.rules.soap import SOAP

NAMES = register(
    MLP,
    FactoredMLP,
    NormalizedMLP,
    Hierarchical,
    Recurrent,
    LearnedHyperparameters,
    Scheduled,
    DirectionMixture,
    SGD,
    Adam,
    AdamW,
    RMSprop,
    Nadam,
    Lion,
    Muon,
    AdamSizedMuon,
    SOAP,
    ScheduleFreeAdamW,
    CosineAdamW,
)
"""The names that `get` knows."""
