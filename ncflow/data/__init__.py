"""Long-tailed image data: sources, the choice of samples, snapshots on disk, and batches on a device."""

from ncflow.data.augment import AUGMENTATIONS, create_augmentation
from ncflow.data.images import DatasetMissing, ImageSource
from ncflow.data.loaders import Batches, Share, Storage, load_batches
from ncflow.data.longtail import PROFILES, hold_out, longtail_counts, sample_indices
from ncflow.data.manifest import SnapshotDamaged
from ncflow.data.mix import MIXES, create_mix
from ncflow.data.noise import noisy_targets
from ncflow.data.recipe import Recipe
from ncflow.data.sampling import SAMPLINGS
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import SOURCES, load_source

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "PROFILES",
    "SAMPLINGS",
    "SOURCES",
    "Batches",
    "DatasetMissing",
    "ImageSource",
    "Recipe",
    "Share",
    "Snapshot",
    "SnapshotDamaged",
    "Storage",
    "create_augmentation",
    "create_mix",
    "hold_out",
    "load_batches",
    "load_source",
    "longtail_counts",
    "noisy_targets",
    "sample_indices",
]
