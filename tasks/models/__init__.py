"""A small zoo: the networks that the demo, the tests and the studies train."""

from stratascope.tasks.models.convolutional import cifar_resnet, convnet, lenet
from stratascope.tasks.models.dense import mlp
from stratascope.tasks.models.encoder_decoder import attention_encoder_decoder
from stratascope.tasks.models.recurrent import character_model, recurrent_classifier
from stratascope.tasks.models.transformer import text_transformer, vision_transformer

__all__ = [
    "attention_encoder_decoder",
    "character_model",
    "cifar_resnet",
    "convnet",
    "lenet",
    "mlp",
    "recurrent_classifier",
    "text_transformer",
    "vision_transformer",
]
