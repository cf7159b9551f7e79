"""Downstream tasks: segmentation; the public names are those of configs and model folders."""

from neurotome.tasks.base import Segmenter
from neurotome.tasks.seg_resnet import SegResNet
from neurotome.tasks.segmentation_training import SegmentationTraining

__all__ = ["SegResNet", "SegmentationTraining", "Segmenter"]
