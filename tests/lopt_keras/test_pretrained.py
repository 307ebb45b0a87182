import lopt_keras
from lopt_keras import pretrained, saved_model


def test_every_shipped_optimizer_carries_its_provenance():
    names = lopt_keras.list_pretrained()
    assert "default" in names
    for name in names:
        _, theta, metadata = saved_model.read(pretrained.path(name))
        optimizer = lopt_keras.LearnedOptimizer(name)
        assert all((optimizer.theta[key] == theta[key]).all() for key in theta)
        assert metadata["command"].startswith("python -m meta.train ")
        assert metadata["commits"]
        assert all(not commit.endswith("-dirty") for commit in metadata["commits"])
        assert isinstance(metadata["seed"], int)
        # A run that was stopped is exported from a checkpoint, which the same command reaches.
        steps, flags = metadata["outer_steps"], metadata["flags"]
        assert steps == flags["num_outer_steps"] or steps % flags["checkpoint_every"] == 0
        assert 0 < steps <= flags["num_outer_steps"]
