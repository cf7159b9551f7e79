"""Every random stream of the package: a seed gives each purpose numbers of its own.

    generator(seed, stream, i, j)     PCG64 from SeedSequence((seed, stream, i, j))

Two purposes that shared a number would draw the same values from the same seed. The numbers are part of the results:
they are never changed, and a new purpose takes a new one.
"""

import numpy as np

VOXEL_ORDER = 1  # order of the sessions of a store, by epoch
VOXEL_DRAW = 2  # crops, flips and views of a step, by step and rank
VOXEL_KIND = 3  # whether a step sees crops, volumes or slices, by step
MIX = 11  # mixup and cutmix, by step
LATENT_DRAW = 12  # which draw of a session a step sees, by step and rank
LATENT_ORDER = 13  # order of the sessions of latents, by epoch
SHARD_DRAW = 21  # augmentation of the scans in shards, by session and draw
EVALUATION_NOISE = 31  # noise that the codes of a scan should bear, by session
EVALUATION_CELLS = 32  # latent cells that the probes of tokens see, by session
EVALUATION_TOKENS = 33  # tokens of all scans that a probe is fitted to (0) and tested on (1)


def generator(seed: int, stream: int, *index: int) -> np.random.Generator:
    """Return the generator of one purpose at one place.

    Args:
        seed: Of the run, at least 0.
        stream: One of the numbers above.
        index: Step, epoch, rank: whatever tells the draws of one purpose apart.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, *index))))
