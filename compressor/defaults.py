"""What is done where nothing is asked for, and how much may be.

Imports nothing: the command line's forms need it at once.
"""

CODEC = "faces"  # one of those in weights/
FAMILY = "v5"  # that is trained
TARGET_PSNR = 34.0  # dB that every picture reaches
LEAST_TARGET, HIGHEST_TARGET = 10.0, 60.0  # dB
MOST_PSNR = 99.0  # dB, the most that is recorded, as of what a learned codec lost nothing of
MOST_EFFORT = 100  # rounds
MAX_BYTES = 256 * 2**20  # of a file that is read
MAX_PIXELS = 100_000_000  # of a picture that is decoded
ORPHAN_HOURS = 1  # that a file which no row needs is kept: a run commits a part within minutes of writing it
