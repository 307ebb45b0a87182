import pytest
import tensorflow as tf

# Two logical devices, so that tf.distribute can be tested on any machine.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def mirrored_strategy():
    """Two replicas on two logical devices.

    One for the whole process: a second strategy on the same devices would number its
    collective operations from the start again, and mix them up with those of the first.
    """
    return tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")])
