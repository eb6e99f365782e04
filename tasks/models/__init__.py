"""A small zoo: the networks that the demo, the tests and the studies train."""

from stratascope.tasks.models.convolutional import cifar_resnet, convnet, lenet
from stratascope.tasks.models.dense import mlp
from stratascope.tasks.models.recurrent import character_model, recurrent_classifier

__all__ = ["character_model", "cifar_resnet", "convnet", "lenet", "mlp", "recurrent_classifier"]
